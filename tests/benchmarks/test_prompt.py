import asyncio
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.prompt import build_prompt
from dynamo.llm.chat_template import ChatTemplate
from dynamo.llm.model_card import artifact_paths
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.openai.messages import Message


@pytest.mark.parametrize("tokens", [100, 101, 102, 103, 1000])
def test_every_prompt_has_the_exact_number_of_tokens(model_dir: Path, tokens: int) -> None:
    files = {name: path.read_bytes() for name, path in artifact_paths(model_dir).items()}
    template = ChatTemplate.from_files(files)
    assert template is not None
    prompt = build_prompt(model_dir, tokens)

    texts = [template.render([Message(role="user", content=text)]) for text in islice(prompt.unique(), 50)]

    assert len(set(texts)) == 50
    encoded = asyncio.run(Tokenizer(files).encode(texts, add_special_tokens=False))
    assert {len(ids) for ids in encoded} == {tokens}


def test_a_prompt_shorter_than_its_number_is_impossible(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="5 tokens"):
        build_prompt(model_dir, 5)
