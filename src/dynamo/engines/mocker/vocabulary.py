"""Which tokens the simulated model may say: those that are a word of plain text each."""

from pathlib import Path

from tokenizers import Tokenizer

from dynamo.errors import ConfigError


def load_vocabulary(model_dir: Path) -> list[int]:
    """The ids, ascending, of all tokens that are a space and an ASCII word.

    Whatever is made of them is visible text with nothing split, so each token can be streamed when it comes.
    Raises ConfigError when the directory has no usable tokenizer.json or the tokenizer has no such token.
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{model_dir} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ConfigError(f"{path} is not a tokenizer: {error}") from error
    if words := plain_words(tokenizer):
        return words
    raise ConfigError(f"the tokenizer in {path} has no token that is a plain English word")


def plain_words(tokenizer: Tokenizer) -> list[int]:
    """As load_vocabulary()."""
    token_ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    # Twice the same token: only one that brings its own space comes out as two words, and the tokenizers that strip
    # the space at the start of a text still show the other.
    texts = tokenizer.decode_batch([[token_id, token_id] for token_id in token_ids])
    return [token_id for token_id, text in zip(token_ids, texts, strict=True) if _is_plain_pair(text)]


def _is_plain_pair(text: str) -> bool:
    first, _, second = text.removeprefix(" ").partition(" ")
    return first == second and first.isascii() and first.isalpha()
