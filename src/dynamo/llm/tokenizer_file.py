"""What tokenizer.json says about the way from text to tokens and back, as far as it matters here."""

import msgspec


class Step(msgspec.Struct):
    """One step of a normalizer, a pre-tokenizer or a decoder; which fields count depends on its type."""

    type: str = ""  # old files may leave it out
    normalizers: list["Step"] = []
    pretokenizers: list["Step"] = []
    decoders: list["Step"] = []
    pattern: dict[str, str] = {}
    content: str = ""
    start: int = 0
    stop: int = 0
    behavior: str = ""
    replacement: str = ""


class Model(msgspec.Struct):
    """The algorithm that cuts words into tokens."""

    type: str = ""  # old files may leave it out
    byte_fallback: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class AddedToken(msgspec.Struct):
    """A token that is found in the text before anything else; with `lstrip` it takes all white space on its left."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


class TokenizerFile(msgspec.Struct):
    """The content of tokenizer.json."""

    model: Model
    added_tokens: list[AddedToken] = []
    normalizer: Step | None = None
    pre_tokenizer: Step | None = None
    decoder: Step | None = None


def steps(root: Step | None) -> list[Step]:
    """The single steps, in order."""
    if root is None:
        return []
    if root.type != "Sequence":
        return [root]
    return [step for part in (*root.normalizers, *root.pretokenizers, *root.decoders) for step in steps(part)]
