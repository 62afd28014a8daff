from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dynamo.engines.mocker.vocabulary import load_vocabulary, plain_words
from dynamo.errors import ConfigError


def test_every_token_is_a_space_and_a_plain_word(model_dir: Path, tokenizer: Tokenizer) -> None:
    token_ids = load_vocabulary(model_dir)
    texts = [tokenizer.decode([token_id]) for token_id in token_ids]

    assert token_ids == sorted(token_ids)
    assert {" fox", " dog", " jumps"} <= set(texts)
    assert all(text[0] == " " and text[1:].isascii() and text[1:].isalpha() for text in texts)
    assert tokenizer.decode(token_ids) == "".join(texts)


def test_a_tokenizer_that_strips_the_first_space_will_do() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "fox": 2, "▁fox": 3, "▁": 4, "▁42": 5, "▁café": 6, "s": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()

    assert plain_words(tokenizer) == [1, 3]


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_vocabulary(tmp_path)

    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        load_vocabulary(tmp_path)


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"<unk>": 0, "42": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))

    with pytest.raises(ConfigError, match="plain English word"):
        load_vocabulary(tmp_path)
