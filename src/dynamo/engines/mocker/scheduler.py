"""Continuous batching in the manner of vLLM v1: which sequences a step serves, and what it yields."""

from collections import deque
from dataclasses import dataclass, field

import msgspec

from dynamo.engines.mocker.block_pool import BlockPool, CacheObserver
from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.engines.mocker.intake import sequence_of
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.tiers import Onboarded, Tiers
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.errors import OverloadedError
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.load import WorkerLoad
from dynamo.tokens import hash_array


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did."""

    outputs: dict[SequenceState, LLMEngineOutput]
    duration_s: float  # how long the simulated engine takes for it; the outputs are due when it ends
    new_tokens: int  # prefilled
    receiving: dict[SequenceState, int] = field(default_factory=dict)  # began to: prompt tokens that each lacks


class Scheduler:
    """Decides step by step which sequences get their next token, and which part of which prompt is prefilled.

    Sequences start in the order in which they were added. A step first draws one token for each decoding sequence,
    then spends what is left of the token budget on prompts; at most one of them, the newest, is left half done. When
    a decoding sequence finds no block for its next token, the newest one gives up its blocks and goes back to the
    front of the queue; it will be prefilled again, with what it has said, and go on from there. The oldest never has
    to yield, and add() refuses what would not fit even alone, so every sequence gets to its end.

    Prefill and decode may be the work of two schedulers. A sequence that is prefill_only ends with its first token and
    is held then, blocks and all, until release(). One with a handoff gets all its blocks when its turn comes, but
    what of its prompt is not in the cache is received: it stands aside until received(), and decodes from the next step
    on. Neither gives way to others: where they hold what the oldest needs, it has to wait for them.

    With tiers below the device's memory, a sequence whose next blocks lie there gets all its blocks likewise, stands
    aside until they have come, gives way to nobody, and then is prefilled before any other is admitted.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        timing: TimingModel,
        sampler: Sampler,
        observer: CacheObserver | None = None,
        tiers: TiersConfig | None = None,
    ) -> None:
        """With `tiers`, advance() is to be called before each step(), and at next_s."""
        self.config = config
        self.preemptions = 0
        self.reused_blocks = dict.fromkeys(Tier, 0)  # by where they were found, preempted sequences included
        self._timing = timing
        self._sampler = sampler
        self.pool = BlockPool(config.num_blocks, observer)
        self.tiers = None if tiers is None else Tiers(tiers, self.pool, config.block_size)
        self._waiting: deque[SequenceState] = deque()
        self._prefilling: SequenceState | None = None  # gives way before all that decode
        self._decoding: list[SequenceState] = []  # oldest first
        self._receiving: set[SequenceState] = set()
        self._arrived: list[SequenceState] = []  # have received all; decode from the next step on
        self._onboarding: set[SequenceState] = set()  # wait for blocks from a tier below
        self._onboarded: deque[SequenceState] = deque()  # have them; their prefill comes next
        self._held: set[SequenceState] = set()  # prefilled for somebody else
        self._finished: list[SequenceState] = []  # in this step
        self._stuck = False  # nobody waiting can be admitted before something is released
        self._totals = WorkerLoad(steps=0)  # what is counted since the start; the rest of it says nothing

    def add(self, request: PreprocessedRequest) -> SequenceState:
        """Queues a request.

        Raises InvalidRequestError when it could never be served, OverloadedError when too many wait already.
        """
        if len(self._waiting) >= self.config.max_num_waiting:
            raise OverloadedError(f"{len(self._waiting)} requests are waiting already")
        sequence = sequence_of(request, self._sampler, self.config.context_length)
        self._waiting.append(sequence)
        return sequence

    def abort(self, sequence: SequenceState) -> None:
        """Ends a sequence and frees what it holds, at once; does nothing when it has ended.

        For one that is being received: nothing may be written into its blocks any more.
        """
        if sequence.finished:
            return
        sequence.finished = True
        if sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._receiving:
            self._receiving.remove(sequence)
        elif sequence in self._arrived:
            self._arrived.remove(sequence)
        elif sequence in self._onboarding:
            self._stop_onboarding(sequence)
        elif sequence in self._onboarded:
            self._onboarded.remove(sequence)
        elif sequence.blocks:
            self._decoding.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)

    def received(self, sequence: SequenceState) -> None:
        """What a sequence lacked has come: it decodes from the next step on, and others find its blocks.

        Does nothing when it does not receive, or has ended.
        """
        if sequence in self._receiving:
            self._receiving.remove(sequence)
            self._arrive(sequence)

    def release(self, sequence: SequenceState) -> None:
        """Frees what a prefill_only sequence has held since its end; does nothing when it holds nothing."""
        if sequence in self._held:
            self._held.remove(sequence)
            self._release(sequence)

    def tell(self, observer: CacheEvents) -> None:
        """Has it told what the device and the tiers hold. To be called before anything is added."""
        self.pool.observer = observer
        if self.tiers is not None:
            self.tiers.observer = observer

    def advance(self, now_s: float) -> None:
        """It is that late, in seconds, and the last step is over: so the tiers know what has been copied by now."""
        if self.tiers is not None:
            for onboarded in self.tiers.advance(now_s):
                self._onboard(onboarded)

    @property
    def next_s(self) -> float | None:
        """When advance() is to be called if there is no work until then; None: it need not be."""
        return None if self.tiers is None else self.tiers.next_s

    @property
    def held(self) -> int:
        """Sequences that were prefilled for somebody else and are not released yet."""
        return len(self._held)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything before received(), release(), abort() or advance() are called again."""
        begun = self._decoding or self._prefilling or self._arrived or self._onboarded
        return bool(begun or (self._waiting and not self._stuck))

    def load(self) -> WorkerLoad:
        """How busy the engine is. Who stands aside is waiting; what is held is in use."""
        return msgspec.structs.replace(
            self._totals,
            running_requests=len(self._decoding) + (self._prefilling is not None),
            waiting_requests=len(self._waiting) + self._aside,
            kv_used_blocks=self.pool.used,
            kv_total_blocks=self.pool.num_blocks,
        )

    def step(self) -> StepResult:
        """One pass of the simulated model."""
        outputs: dict[SequenceState, LLMEngineOutput] = {}
        receiving: dict[SequenceState, int] = {}
        self._decode(outputs)
        if self._arrived:
            self._join(outputs)
        decoded = len(outputs)
        new_tokens = self._prefill(outputs, receiving, budget=self.config.max_num_batched_tokens - decoded)
        used_blocks = self.pool.used
        self._stuck = bool(self._waiting) and not (outputs or new_tokens or receiving)
        self._retire()
        usage = used_blocks / self.pool.num_blocks
        duration_s = self._timing.step_s(new_tokens=new_tokens, decoding=decoded > 0, usage=usage)
        self._count(duration_s, len(outputs), new_tokens, decoded, used_blocks)
        return StepResult(outputs=outputs, duration_s=duration_s, new_tokens=new_tokens, receiving=receiving)

    def _count(self, duration_s: float, outputs: int, new_tokens: int, decoded: int, used_blocks: int) -> None:
        totals = self._totals
        totals.steps = (totals.steps or 0) + 1
        totals.generated_tokens += outputs
        totals.busy_s += duration_s
        if new_tokens:
            totals.prefill_steps += 1
            totals.prefilled_tokens += new_tokens
        if decoded:
            totals.decode_steps += 1
            totals.decoded_tokens += decoded
            totals.kv_token_steps += used_blocks * self.config.block_size

    def _decode(self, outputs: dict[SequenceState, LLMEngineOutput]) -> None:
        """One token for each decoding sequence. This loop is the hot path."""
        for sequence in self._decoding:  # preemption shortens the list at its far end while this runs
            if not sequence.upcoming and not self._grow(sequence):
                break
            outputs[sequence] = self._draw(sequence)

    def _draw(self, sequence: SequenceState) -> LLMEngineOutput:
        """The next token of the stretch."""
        output = LLMEngineOutput(token_ids=[sequence.upcoming.pop()])
        if not sequence.upcoming:
            self._end_stretch(sequence, output)
        return output

    def _grow(self, sequence: SequenceState) -> bool:
        """Gets the block for the next tokens, at the cost of newer sequences; False when there was no newer one."""
        while not self.pool.allocate(1):
            newest = self._prefilling or self._decoding[-1]
            self._preempt(newest)
            if newest is sequence:
                return False
        sequence.blocks += 1
        sequence.begin_stretch(sequence.blocks * self.config.block_size)
        return True

    def _preempt(self, sequence: SequenceState) -> None:
        if sequence is self._prefilling:
            self._prefilling = None
        else:
            self._decoding.pop()
        self._release(sequence)
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _end_stretch(self, sequence: SequenceState, output: LLMEngineOutput) -> None:
        """The sequence's last block is full, or its script at an end, or both."""
        self._share(sequence, sequence.length - 1)
        if sequence.generated == sequence.script.length:
            output.finish_reason = sequence.script.finish_reason
            output.stop_reason = sequence.script.stop_reason
            sequence.finished = True
            self._finished.append(sequence)

    def _join(self, outputs: dict[SequenceState, LLMEngineOutput]) -> None:
        """Those that have received decode from here on: their prompt's last token is computed as any that they said.

        The budget has room for it: they were counted as running when they were admitted.
        """
        for sequence in self._arrived:
            outputs[sequence] = self._start_decoding(sequence)
        self._arrived.clear()

    def _prefill(
        self, outputs: dict[SequenceState, LLMEngineOutput], receiving: dict[SequenceState, int], *, budget: int
    ) -> int:
        """Computes up to `budget` prompt tokens; returns how many."""
        left = budget
        while left:
            sequence = self._next_prompt(left)
            if sequence is None:
                break
            if sequence in self._onboarding:
                continue
            if sequence.remote:
                receiving[sequence] = self._receive(sequence)
                continue
            chunk = min(left, sequence.length - sequence.computed)
            left -= chunk
            sequence.computed += chunk
            self._share(sequence, sequence.computed)
            if sequence.computed < sequence.length:
                self._prefilling = sequence
            else:
                self._prefilling = None
                outputs[sequence] = self._start_decoding(sequence)
        return budget - left

    def _next_prompt(self, budget: int) -> SequenceState | None:
        """Whose turn it is; None when nobody's prompt can be begun, or gone on with, in this step."""
        if self._prefilling is not None:
            return self._prefilling
        if not self._onboarded:
            return self._admit(budget)
        oldest = self._onboarded[0]
        return self._onboarded.popleft() if self._fits(oldest.length - oldest.computed, budget) else None

    def _fits(self, new_tokens: int, budget: int) -> bool:
        return self.config.enable_chunked_prefill or new_tokens <= budget

    def _admit(self, budget: int) -> SequenceState | None:
        """Takes the next waiting sequence with all the blocks for its prompt; None when there is no room."""
        if not self._waiting or len(self._decoding) + self._aside >= self.config.max_num_seqs:
            return None
        sequence = self._waiting[0]
        block_size = self.config.block_size
        full_blocks = (sequence.length - 1) // block_size  # at least one token is computed
        hashes = sequence.hashes(full_blocks, block_size) if self.config.enable_prefix_caching else hash_array()
        reused = hashes[: self.pool.match(hashes)]
        computed = len(reused) * block_size
        to_compute = 0 if sequence.remote else sequence.length - computed
        if not self._fits(to_compute, budget):
            return None
        blocks = -(-sequence.length // block_size)
        if not self.pool.allocate(blocks - len(reused), reused):
            return None
        self._waiting.popleft()
        sequence.blocks, sequence.shared_blocks, sequence.computed = blocks, len(reused), computed
        self.reused_blocks[Tier.DEVICE] += len(reused)
        if self.tiers is not None and not sequence.remote and self.tiers.look_up(sequence, hashes[len(reused) :]):
            self._onboarding.add(sequence)
        elif sequence.cached_tokens is None:
            sequence.cached_tokens = computed
        return sequence

    @property
    def _aside(self) -> int:
        """Sequences that have their blocks and wait for what is to be in them, or for the step that uses it."""
        return len(self._receiving) + len(self._arrived) + len(self._onboarding) + len(self._onboarded)

    def _onboard(self, onboarded: Onboarded) -> None:
        """What the tiers had for a sequence, which may be nothing after all, is in its blocks."""
        sequence = onboarded.sequence
        self._onboarding.remove(sequence)
        self._onboarded.append(sequence)
        sequence.computed += (onboarded.host + onboarded.disk) * self.config.block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        self._share(sequence, sequence.computed)
        self.reused_blocks[Tier.HOST] += onboarded.host
        self.reused_blocks[Tier.DISK] += onboarded.disk

    def _stop_onboarding(self, sequence: SequenceState) -> None:
        assert self.tiers is not None
        self._onboarding.remove(sequence)
        self.tiers.give_up(sequence)

    def _receive(self, sequence: SequenceState) -> int:
        """Sets a sequence aside that has just been admitted; how many tokens it lacks.

        That is all but what was in the cache and the last one, which is computed in any case, to get the next one.
        """
        sequence.remote = False  # should it have to give way one day, it is prefilled here
        lacking = sequence.length - 1 - sequence.computed
        if lacking:
            self._receiving.add(sequence)
        else:
            self._arrive(sequence)
        return lacking

    def _arrive(self, sequence: SequenceState) -> None:
        sequence.cached_tokens = sequence.computed = sequence.length - 1
        self._share(sequence, sequence.computed)
        self._arrived.append(sequence)

    def _start_decoding(self, sequence: SequenceState) -> LLMEngineOutput:
        """The token that a finished prefill yields: the first of the output, unless there was a preemption."""
        first = sequence.generated == 0
        self._decoding.append(sequence)
        sequence.begin_stretch(sequence.blocks * self.config.block_size)
        output = self._draw(sequence)
        if first:
            output.cached_tokens = sequence.cached_tokens
        return output

    def _share(self, sequence: SequenceState, tokens: int) -> None:
        """Lets other sequences find the blocks that `tokens` tokens in the cache have filled."""
        full_blocks = tokens // self.config.block_size
        shared = sequence.shared_blocks
        if self.config.enable_prefix_caching and full_blocks > shared:
            hashes = sequence.hashes(full_blocks, self.config.block_size)
            self.pool.share(hashes[shared:], hashes[shared - 1] if shared else None)
            if self.tiers is not None:
                self.tiers.computed(hashes[shared:])
            sequence.shared_blocks = full_blocks

    def _retire(self) -> None:
        """Frees what the sequences that finished in this step held, unless somebody is to fetch it."""
        if self._finished:
            self._decoding = [sequence for sequence in self._decoding if not sequence.finished]
            for sequence in self._finished:
                if sequence.prefill_only:
                    self._held.add(sequence)
                else:
                    self._release(sequence)
            self._finished.clear()

    def _release(self, sequence: SequenceState) -> None:
        self._stuck = False
        shared = sequence.shared_blocks
        self.pool.release(sequence.blocks - shared, sequence.block_hashes[:shared])
        sequence.rewind()
