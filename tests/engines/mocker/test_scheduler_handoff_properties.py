"""The same where some are prefilled for others and some by others, and transfers end when they like, or never."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import FinishReason, PreprocessedRequest
from tests.engines.mocker.test_scheduler_properties import STEPS_MAX, SchedulerMachine, alone, requests

HANDOFF = Handoff(engine="mocker", params=b"")


class HandoffMachine(SchedulerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lacking: dict[SequenceState, int] = {}  # who receives
        self.held: dict[SequenceState, int] = {}  # the blocks of who has been prefilled for somebody else

    @rule(request=requests, role=st.sampled_from(["prefill", "decode", "all"]))
    def add(self, request: PreprocessedRequest, role: str) -> None:
        request = msgspec.structs.replace(
            request, prefill_only=role == "prefill", handoff=HANDOFF if role == "decode" else None
        )
        super().add(request)

    @rule()
    def step(self) -> None:
        scheduler = self.scheduler
        had_work, before = scheduler.has_work, list(scheduler._waiting)
        result = self.checked_step()

        did_something = bool(result.outputs or result.receiving or list(scheduler._waiting) != before)
        assert had_work or not did_something, "has_work said that there was nothing to do"
        self.lacking |= {sequence: tokens for sequence, tokens in result.receiving.items() if tokens}
        for sequence, output in result.outputs.items():
            request = self.requests[sequence]
            if output.cached_tokens is not None and request.handoff is not None and not scheduler.preemptions:
                assert output.cached_tokens == len(request.token_ids) - 1
            if request.prefill_only:
                assert output.finish_reason == FinishReason.LENGTH
                self.held[sequence] = sequence.blocks

    @precondition(lambda self: self.lacking)
    @rule(data=st.data(), well=st.booleans())
    def end_transfer(self, data: st.DataObject, well: bool) -> None:
        sequence = data.draw(st.sampled_from(list(self.lacking)))
        assert self.lacking.pop(sequence) < len(self.requests[sequence].token_ids)
        if well:
            self.scheduler.received(sequence)
            self.scheduler.received(sequence)
        else:
            self.scheduler.abort(sequence)
            del self.requests[sequence]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(list(self.held)))
        del self.held[sequence]
        self.scheduler.release(sequence)
        self.scheduler.release(sequence)

    def forget(self, sequence: SequenceState) -> None:
        super().forget(sequence)
        self.lacking.pop(sequence, None)

    @invariant()
    def nobody_overtakes(self) -> None:
        """Not so here: who waits for a transfer is overtaken. But nobody is in two places."""
        assert len(self.holders()) == len(set(self.holders()))

    @invariant()
    def what_is_held_stays(self) -> None:
        assert {sequence: sequence.blocks for sequence in self.scheduler._held} == self.held
        assert self.scheduler.held == len(self.held)

    @invariant()
    def no_more_run_than_may(self) -> None:
        scheduler = self.scheduler
        taking_part = len(self.holders()) - scheduler.held
        assert taking_part <= scheduler.config.max_num_seqs
        load = scheduler.load()
        unfinished = sum(not self.ended(sequence) for sequence in self.requests)
        assert load.running_requests + load.waiting_requests == unfinished

    def teardown(self) -> None:
        """Once all transfers have ended, everybody gets to the end, with the tokens that it would get alone."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(STEPS_MAX):
            for sequence in list(self.lacking):
                del self.lacking[sequence]
                self.scheduler.received(sequence)
            for sequence in list(self.held):
                del self.held[sequence]
                self.scheduler.release(sequence)
            if not self.scheduler.has_work:
                break
            self.step()
            self.no_block_is_lost()
        assert not self.scheduler.has_work, "some sequence never ended"
        assert self.scheduler.load().waiting_requests == self.scheduler.pool.used == 0
        for sequence, request in self.requests.items():
            whole = alone(msgspec.structs.replace(request, prefill_only=False, handoff=None), self.context_length)
            assert self.said(sequence) == (whole[:1] if request.prefill_only else whole)

    @property
    def context_length(self) -> int:
        return self.scheduler.config.context_length

    def holders(self) -> list[SequenceState]:
        scheduler = self.scheduler
        return [*super().holders(), *scheduler._receiving, *scheduler._arrived, *scheduler._held]


TestHandoffMachine = HandoffMachine.TestCase
TestHandoffMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
