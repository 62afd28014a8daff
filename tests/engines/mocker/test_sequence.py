from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.generation import PreprocessedRequest, StopConditions
from dynamo.tokens import HASH_SEED, sequence_hashes, token_array

BLOCK_SIZE = 4


def sequence_of(prompt_tokens: int, output_tokens: int = 50, seed: int = HASH_SEED) -> SequenceState:
    request = PreprocessedRequest(
        model="tiny", token_ids=token_array(range(prompt_tokens)), stop_conditions=StopConditions(max_tokens=50)
    )
    return SequenceState(request.token_ids, Sampler(range(1000)).script(request, output_tokens), seed)


def draw(sequence: SequenceState, count: int) -> list[int]:
    return [sequence.upcoming.pop() for _ in range(count)]


def test_a_stretch_reaches_to_where_the_blocks_are_full() -> None:
    sequence = sequence_of(6)
    sequence.begin_stretch(2 * BLOCK_SIZE)

    assert len(sequence.upcoming) == 3  # two more fill the block; the third needs only their KV
    assert sequence.generated == 0
    draw(sequence, 3)
    assert (sequence.generated, sequence.length) == (3, 9)


def test_a_stretch_ends_with_the_script() -> None:
    sequence = sequence_of(6, output_tokens=2)
    sequence.begin_stretch(2 * BLOCK_SIZE)

    assert len(sequence.upcoming) == 2


def test_a_rewound_sequence_goes_on_where_it_was() -> None:
    plain, rewound = sequence_of(6), sequence_of(6)
    plain.begin_stretch(10 * BLOCK_SIZE)
    rewound.begin_stretch(2 * BLOCK_SIZE)
    said = draw(rewound, 1)
    rewound.rewind()

    assert (rewound.generated, rewound.length, rewound.blocks) == (1, 7, 0)
    rewound.begin_stretch(10 * BLOCK_SIZE)
    assert said + draw(rewound, 20) == draw(plain, 21)


@settings(deadline=None)
@given(
    prompt_tokens=st.integers(1, 20),
    steps=st.lists(st.integers(0, 8), max_size=5),
    seed=st.sampled_from([HASH_SEED, 5]),
)
def test_hashes_are_those_of_all_tokens_however_they_are_asked_for(
    prompt_tokens: int, steps: list[int], seed: int
) -> None:
    sequence = sequence_of(prompt_tokens, seed=seed)
    output = sequence.script.tokens(0, 50)
    tokens = token_array([*range(prompt_tokens), *output])
    full = prompt_tokens // BLOCK_SIZE

    for step in steps:
        full = min(full + step, len(tokens) // BLOCK_SIZE)
        expected = sequence_hashes(tokens[: full * BLOCK_SIZE], BLOCK_SIZE, seed)
        assert sequence.hashes(full, BLOCK_SIZE) == expected
