from collections.abc import Callable

import pytest

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.errors import ConfigError


def test_the_context_is_what_the_model_allows_and_the_blocks_hold() -> None:
    assert SchedulerConfig(max_model_len=100, block_size=16, num_blocks=10).context_length == 100
    assert SchedulerConfig(max_model_len=1000, block_size=16, num_blocks=10).context_length == 160


@pytest.mark.parametrize(
    "make",
    [
        lambda: SchedulerConfig(block_size=0),
        lambda: SchedulerConfig(num_blocks=0),
        lambda: SchedulerConfig(max_num_seqs=0),
        lambda: SchedulerConfig(max_model_len=0),
        lambda: SchedulerConfig(max_num_waiting=-1),
    ],
)
def test_every_size_is_at_least_one(make: Callable[[], SchedulerConfig]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        make()


def test_a_step_must_hold_a_token_of_each_sequence() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        SchedulerConfig(max_num_seqs=10, max_num_batched_tokens=9)


def test_without_chunks_a_step_must_hold_a_prompt() -> None:
    SchedulerConfig(max_model_len=300, max_num_batched_tokens=300, enable_chunked_prefill=False)
    with pytest.raises(ConfigError, match="chunked prefill"):
        SchedulerConfig(max_model_len=301, max_num_batched_tokens=300, enable_chunked_prefill=False)
