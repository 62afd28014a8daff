from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dynamo.protocols.generation import PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.tokens import token_array

CONTEXT_LENGTH = 512
SENTENCES = ("the quick brown fox jumps over the lazy dog 42 times", "naïve café, the fox: the dog!")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE with a special token, trained on SENTENCES."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """What the simulated engine needs of a model."""
    directory = tmp_path_factory.mktemp("tiny-model")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_bytes(msgspec.json.encode({"max_position_embeddings": CONTEXT_LENGTH}))
    return directory


@pytest.fixture
def request_of() -> Callable[..., PreprocessedRequest]:
    """Makes a request of a prompt."""

    def make(
        prompt: range | list[int],
        *,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        stop_token_ids: tuple[int, ...] = (),
        seed: int | None = None,
    ) -> PreprocessedRequest:
        return PreprocessedRequest(
            model="tiny",
            token_ids=token_array(prompt),
            sampling_options=SamplingOptions(seed=seed),
            stop_conditions=StopConditions(
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                ignore_eos=ignore_eos,
                stop_token_ids=list(stop_token_ids),
            ),
        )

    return make
