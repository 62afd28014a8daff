"""Where requests go, and when."""

from collections import Counter
from typing import Any

import pytest

from dynamo.errors import NoInstancesError, OverloadedError
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.routing import Prospect
from dynamo.router.config import KvRouterConfig
from dynamo.router.radix_tree import Overlap
from dynamo.router.routing import WorkerLimits

from .scheduling import BATCH_TOKENS, BLOCK_SIZE, A, B, C, Fleet, fleet_of, make_fleet, only, prompt


class TestChoice:
    def test_the_worker_that_has_the_prompt(self) -> None:
        fleet = make_fleet(A, B, C)
        fleet.stored(B, prompt(0))
        decision = fleet.sent("r", prompt(0))
        assert (decision.worker, decision.overlap, decision.prompt_blocks) == (B, Overlap(device=10), 10)
        assert decision.cost == 10  # the blocks it would hold
        assert decision.mean_cost == pytest.approx(50 / 3)

    def test_the_one_that_has_more_of_it(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(A, prompt(0, 12))
        fleet.stored(B, prompt(0, 16))
        assert fleet.worker("r", prompt(0)) == B

    def test_faster_memory(self) -> None:
        fleet = make_fleet(A, B, C)
        fleet.stored(A, prompt(0), Tier.DISK)
        fleet.stored(B, prompt(0), Tier.HOST)
        assert fleet.look(prompt(0)).overlap == Overlap(host=10)
        fleet.stored(C, prompt(0))
        assert fleet.worker("r", prompt(0)) == C

    def test_another_where_the_one_that_has_it_is_much_busier(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(A, prompt(0))
        fleet.busy(A, 12)
        assert fleet.worker("near", prompt(0)) == A
        fleet.busy(A, 40)
        assert fleet.worker("far", prompt(0)) == B

    def test_any_of_equals(self) -> None:
        fleet = make_fleet(A, B, C)
        chosen = Counter(fleet.look(prompt(0)).worker for _ in range(300))
        assert chosen.keys() == {A, B, C}
        assert min(chosen.values()) > 60

    def test_a_burst_of_strangers_is_spread(self) -> None:
        fleet = make_fleet(A, B, C)
        chosen = Counter(fleet.worker(str(i), prompt(100 * i)) for i in range(30))
        assert set(chosen.values()) == {10}

    def test_temperature(self) -> None:
        fleet = make_fleet(A, B, router_temperature=0.5)
        fleet.stored(A, prompt(0))
        chosen = Counter(fleet.look(prompt(0)).worker for _ in range(300))
        assert chosen[A] > chosen[B] > 0

    def test_only_those_that_may(self) -> None:
        fleet = make_fleet(A, B, C)
        fleet.stored(A, prompt(0))
        assert fleet.worker("r", prompt(0), eligible=only(C)) == C
        with pytest.raises(NoInstancesError):
            fleet.submit("s", prompt(0), eligible=only(WorkerId(9)))
        assert "s" not in fleet.scheduler.sequences

    def test_no_worker(self) -> None:
        fleet = make_fleet()
        with pytest.raises(NoInstancesError):
            fleet.submit("r", prompt(0))
        with pytest.raises(NoInstancesError):
            fleet.look(prompt(0))

    def test_ranks_of_an_instance_are_workers(self) -> None:
        ranks = [WorkerId(1, 0), WorkerId(1, 1)]
        fleet = make_fleet(*ranks)
        fleet.stored(ranks[1], prompt(0))
        assert fleet.worker("r", prompt(0)) == ranks[1]
        assert Counter(fleet.worker(str(i), prompt(100 * i + 100)) for i in range(3)) == {ranks[0]: 2, ranks[1]: 1}

    def test_less_than_a_block(self) -> None:
        fleet = make_fleet(A, B)
        decision = fleet.sent("r", [1, 2, 3])
        assert (decision.prompt_blocks, decision.cost) == (0, 1.75)
        assert fleet.loads()[decision.worker] == (1, 3, 1)
        assert fleet.worker("s", [1, 2, 3]) != decision.worker  # nothing is known of its cache

    def test_no_token_at_all(self) -> None:
        fleet = make_fleet(A)
        fleet.sent("r", [])
        assert fleet.loads()[A] == (1, 1, 0)

    def test_the_same_seed_decides_the_same(self) -> None:
        def run(seed: int) -> list[WorkerId]:
            fleet = make_fleet(A, B, C, seed=seed, router_temperature=0.7)
            chosen = []
            for i in range(40):
                chosen.append(fleet.worker(str(i), prompt(100 * (i % 7))))
                if i % 3 == 0:
                    fleet.scheduler.free(str(i // 2))
            return chosen

        assert run(1) == run(1) != run(2)

    def test_looking_changes_nothing(self) -> None:
        fleet = make_fleet(A, B)
        decision = fleet.look(prompt(0))
        assert fleet.cached(prompt(0)) == {}
        assert fleet.loads()[decision.worker] == (0, 0, 0)

    def test_what_a_request_would_find(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(A, prompt(0, 24))
        fleet.busy(A, 12)
        fleet.busy(B, 30)
        prospect = fleet.scheduler.prospect(fleet.request("look", prompt(0)), fleet.now_s)
        assert prospect == Prospect(cached_tokens=24, waiting_tokens=12)
        assert "look" not in fleet.scheduler.sequences


class TestDefaults:
    """As the router comes: what is cached weighs much, up to a limit."""

    def test_weights(self) -> None:
        config = KvRouterConfig()
        assert (config.overlap_score_weight, config.host_cache_hit_weight, config.disk_cache_hit_weight) == (8, 6, 2)
        assert config.prefill_load_scale == 32

    def test_of_two_that_have_much_the_one_that_has_more(self) -> None:
        fleet = fleet_of(KvRouterConfig(), A, B)
        fleet.stored(A, prompt(0, 36))
        fleet.stored(B, prompt(0, 40))
        assert {fleet.look(prompt(0)).worker for _ in range(20)} == {B}

    def test_a_prompt_that_all_requests_share_does_not_keep_them_on_one_worker(self) -> None:
        fleet = fleet_of(KvRouterConfig(), A, B, C)
        counts = Counter[WorkerId]()
        for i in range(60):
            limit = 1.5 * i / 3 + 4
            worker = fleet.worker(str(i), prompt(0))
            assert counts[worker] <= limit
            counts[worker] += 1
        assert len(counts) > 1

    def test_they_may_stay_where_the_others_have_as_many(self) -> None:
        fleet = fleet_of(KvRouterConfig(), A, B)
        fleet.stored(A, prompt(0))
        for i in range(20):
            fleet.sent(f"b{i}", prompt(100 * i + 100), eligible=only(B))
        assert {fleet.worker(str(i), prompt(0)) for i in range(20)} == {A}

    def test_a_session_that_is_bound_stays_all_the_same(self) -> None:
        fleet = fleet_of(KvRouterConfig(router_session_affinity="hard"), A, B, C)
        assert len({fleet.worker(str(i), prompt(0), session_id="s") for i in range(60)}) == 1

    def test_but_not_one_that_is_not(self) -> None:
        fleet = fleet_of(KvRouterConfig(router_session_affinity="soft"), A, B, C)
        assert len({fleet.worker(str(i), prompt(0), session_id="s") for i in range(60)}) > 1

    def test_nor_does_a_request_go_where_it_may_not(self) -> None:
        fleet = fleet_of(KvRouterConfig(), A, B, C)
        assert {fleet.worker(str(i), prompt(0), eligible=only(A)) for i in range(60)} == {A}
        assert fleet.worker("r", prompt(0), eligible=only(A, B)) == B


class TestPrefilledElsewhere:
    """The prompt needs a place to be decoded, and no more."""

    def test_load_counts_and_caches_do_not(self) -> None:
        fleet = make_fleet(A, B, C)
        fleet.stored(A, prompt(0))
        busy = fleet.worker("busy", prompt(0))
        assert busy == A
        assert fleet.worker("plain", prompt(0)) == A  # where it is cached
        assert fleet.worker("prefilled", prompt(0), prefilled=True) != A

    def test_it_is_no_prefill_load(self) -> None:
        fleet = make_fleet(A, B, C)
        decision = fleet.sent("r", prompt(0), prefilled=True)
        activity = dict(fleet.scheduler.activities())[decision.worker]
        assert activity.prefill_tokens == 1  # engines compute the last one themselves
        assert activity.blocks == len(prompt(0)) // BLOCK_SIZE

    def test_a_worker_that_prefills_is_passed_over(self) -> None:
        fleet = make_fleet(A, B, C)
        workers = [fleet.worker(f"r{i}", prompt(1000 * i, 80)) for i in range(2)]
        chosen = fleet.worker("prefilled", prompt(9000), prefilled=True)
        assert chosen not in workers

    def test_a_session_does_not_draw_it(self) -> None:
        fleet = make_fleet(A, B, C)
        first = fleet.worker("r1", prompt(0), session_id="s")
        assert fleet.worker("r2", prompt(500), session_id="s", prefilled=True) != first


class TestLoad:
    def test_a_request_from_its_sending_to_its_end(self) -> None:
        fleet = make_fleet(A)
        fleet.stored(A, prompt(0, 24))
        fleet.sent("r", prompt(0, 42))
        assert fleet.loads()[A] == (1, 18, 11)
        fleet.scheduler.first_token("r", 0.0)
        assert fleet.loads()[A] == (1, 0, 11)
        fleet.scheduler.output("r", 3, 0.0)
        assert fleet.loads()[A] == (1, 0, 12)
        fleet.scheduler.free("r")
        assert fleet.loads()[A] == (0, 0, 0)

    def test_a_prompt_that_is_cached_whole_still_needs_a_token(self) -> None:
        fleet = make_fleet(A)
        fleet.stored(A, prompt(0))
        fleet.sent("r", prompt(0))
        assert fleet.loads()[A] == (1, 1, 10)

    def test_unknown_ids_are_passed_over(self) -> None:
        fleet = make_fleet(A)
        fleet.scheduler.first_token("x", 0.0)
        fleet.scheduler.output("x", 5, 0.0)
        fleet.scheduler.free("x")
        assert fleet.loads()[A] == (0, 0, 0)

    def test_an_id_that_comes_again_is_the_same_request(self) -> None:
        fleet = make_fleet(A, B)
        first = fleet.worker("r", prompt(0))
        second = fleet.worker("r", prompt(0), eligible=lambda worker: worker != first)
        assert fleet.loads() == {first: (0, 0, 0), second: (1, 40, 10)}
        assert fleet.cached(prompt(0)) == {second: 10}  # the first one will not have it
        fleet.scheduler.free("r")
        assert fleet.loads()[second] == (0, 0, 0)

    def test_what_others_send_shows_in_the_workers_own_load(self) -> None:
        fleet = make_fleet(A, B)
        fleet.busy(B, 8)
        fleet.says(A, WorkerLoad(kv_used_blocks=20))
        assert fleet.worker("r", prompt(0)) == B
        fleet.says(A, WorkerLoad(kv_used_blocks=0))
        assert fleet.worker("s", prompt(100)) == A

    def test_what_was_sent_from_here_is_not_counted_twice(self) -> None:
        fleet = make_fleet(A, B)
        fleet.busy(A, 40)
        before = fleet.look(prompt(0), explain=True).candidates
        fleet.says(A, WorkerLoad(kv_used_blocks=10))
        fleet.says(B, WorkerLoad(kv_used_blocks=0))
        fleet.says(WorkerId(9), WorkerLoad(kv_used_blocks=9))
        assert fleet.look(prompt(0), explain=True).candidates == before

    def test_prompts_of_others_are_to_be_prefilled_before_this_one(self) -> None:
        fleet = make_fleet(A, B)
        fleet.busy(B, 8)
        fleet.says(A, WorkerLoad(waiting_requests=1, prefill_tokens=16))
        assert fleet.worker("r", prompt(0)) == B
        fleet.says(A, WorkerLoad(running_requests=1))
        assert fleet.worker("s", prompt(100)) == A

    def test_requests_of_others_can_be_too_many(self) -> None:
        """Whatever is cached there: with 9 of 9 it has more than half as many again as the mean of 3, and 4."""
        fleet = make_fleet(A, B, C, overlap_score_weight=1000.0)
        fleet.stored(A, prompt(0))
        fleet.says(A, WorkerLoad(running_requests=8))
        assert fleet.look(prompt(0)).worker == A
        fleet.says(A, WorkerLoad(running_requests=8, waiting_requests=1))
        decision = fleet.look(prompt(0), explain=True)
        assert decision.worker != A
        assert {c.worker for c in decision.candidates if c.has_too_many} == {A}
        for worker in (B, C):
            fleet.says(worker, WorkerLoad(running_requests=1))  # and so they raise the mean
        assert fleet.look(prompt(0)).worker == A

    def test_it_is_forgotten_when_the_worker_says_no_more(self) -> None:
        fleet = make_fleet(A, B)
        fleet.says(A, WorkerLoad(running_requests=1, kv_used_blocks=20))
        assert fleet.loads()[A] == (1, 0, 20)
        for _ in range(4):
            fleet.scheduler.expect_loads()
        assert fleet.loads()[A] == (0, 0, 0)

    def test_requests_that_an_idle_worker_cannot_have(self) -> None:
        fleet = make_fleet(A, B)
        fleet.says(A, WorkerLoad(running_requests=1))
        fleet.sent("lost", prompt(0), eligible=only(A))
        fleet.sent("elsewhere", prompt(0), eligible=only(B))
        lost = []
        for second in range(1, 10):
            fleet.now_s = second
            lost += fleet.says(A, WorkerLoad(prefill_tokens=0))
        assert lost == ["lost"]
        assert fleet.loads() == {A: (0, 0, 0), B: (1, 40, 10)}
        assert fleet.cached(prompt(0)) == {B: 10}

    def test_another_routers_requests_count(self) -> None:
        fleet = make_fleet(A, B)
        fleet.scheduler.sequences.add("x/1", A, prompt_tokens=40, prefill_tokens=40, now_s=0.0, source="x")
        assert fleet.worker("r", prompt(0)) == B

    def test_silent_requests_are_swept(self) -> None:
        fleet = make_fleet(A, router_active_request_expiry_secs=60.0)
        fleet.sent("silent", prompt(0))
        fleet.sent("talking", prompt(100))
        fleet.scheduler.output("talking", 1, 30.0)
        assert fleet.scheduler.sweep(60.0) == []
        assert fleet.scheduler.sweep(61.0) == ["silent"]
        assert fleet.loads()[A][0] == 1
        assert fleet.cached(prompt(0)) == {}  # nobody knows what has become of it
        assert fleet.cached(prompt(100)) == {A: 10}


class TestSiblings:
    """Requests with the same prefix that come before any event can tell of the first one."""

    def test_a_burst_stays_together_where_others_are_busy_too(self) -> None:
        fleet = make_fleet(A, B, C)
        for worker in (B, C):
            fleet.busy(worker, 80)
        assert [fleet.worker(str(i), prompt(0) + prompt(1000 * i + 1000, 4)) for i in range(3)] == [A, A, A]
        assert fleet.loads()[A][1] == 44 + 4 + 4

    def test_a_burst_stays_together_where_nobody_is_busy(self) -> None:
        fleet = make_fleet(A, B, C)
        assert len({fleet.worker(str(i), prompt(0) + prompt(1000 * i + 1000, 4)) for i in range(3)}) == 1

    def test_but_not_where_their_worker_is_much_busier(self) -> None:
        fleet = make_fleet(A, B, C)
        fleet.sent("0", prompt(0), eligible=only(A))
        fleet.busy(A, 80)
        assert fleet.worker("1", prompt(0)) != A
        siblings = [prompt(0) + prompt(1000 * i, 8) for i in range(2, 42)]
        assert {fleet.worker(str(i), tokens) for i, tokens in enumerate(siblings, 2)} == {A, B, C}

    def test_what_runs_is_cached_until_it_ends_and_then_events_tell(self) -> None:
        fleet = make_fleet(A, B)
        worker = fleet.worker("r", prompt(0))
        fleet.now_s = 100.0  # a long prefill
        assert fleet.cached(prompt(0)) == {worker: 10}
        fleet.scheduler.first_token("r", 100.0)
        fleet.now_s = 200.0  # a long answer
        assert fleet.cached(prompt(0)) == {worker: 10}
        fleet.stored(worker, prompt(0, 24))
        fleet.scheduler.free("r")
        assert fleet.cached(prompt(0)) == {worker: 6}

    @pytest.mark.parametrize("feeds", [True, False])
    def test_what_ends_before_its_first_token_leaves_no_trace(self, feeds: bool) -> None:
        fleet = make_fleet(A, B, feeds=feeds)
        fleet.sent("r", prompt(0))
        fleet.scheduler.free("r")
        assert fleet.cached(prompt(0)) == {}

    def test_a_worker_that_is_gone_takes_them_along(self) -> None:
        fleet = make_fleet(A, B)
        fleet.sent("0", prompt(0), eligible=only(A))
        fleet.sent("1", prompt(0), eligible=only(B))
        fleet.set_workers(B)
        assert fleet.cached(prompt(0)) == {B: 10}
        assert fleet.worker("2", prompt(0)) == B

    def test_a_burst_spreads_when_that_is_cheaper_than_to_wait(self) -> None:
        """What siblings do not share adds up: for a prefix of ten blocks it is soon worth a second prefill."""
        fleet = make_fleet(A, B, C)
        chosen = [fleet.worker(str(i), prompt(0) + prompt(1000 * i + 1000, 4)) for i in range(30)]
        assert len(set(chosen[:5])) == 1
        assert set(Counter(chosen).values()) == {10}

    def test_events_that_say_more_count(self) -> None:
        fleet = make_fleet(A)
        fleet.sent("r", prompt(0))
        fleet.stored(A, prompt(0, 60), Tier.HOST)
        assert fleet.look(prompt(0, 60)).overlap == Overlap(host=15)
        assert fleet.look(prompt(0)).overlap == Overlap(device=10)  # it is on its way to the device


class TestWithoutEvents:
    def test_workers_are_believed_to_have_what_they_were_sent(self) -> None:
        fleet = make_fleet(A, B, C, feeds=False, router_ttl_secs=120.0)
        first = fleet.worker("r", prompt(0))
        fleet.scheduler.first_token("r", 0.0)
        fleet.scheduler.free("r")
        fleet.now_s = 119.0
        assert {fleet.look(prompt(0, 44)).worker for _ in range(20)} == {first}
        fleet.now_s = 120.0
        assert {fleet.look(prompt(0, 44)).worker for _ in range(50)} == {A, B, C}

    def test_what_is_believed_is_counted_until_it_lapses(self) -> None:
        fleet = make_fleet(A, B, feeds=False, router_ttl_secs=120.0)
        for request_id, worker in (("a", A), ("b", B)):  # the same blocks
            fleet.sent(request_id, prompt(0), eligible=only(worker))
            fleet.scheduler.first_token(request_id, 0.0)
            fleet.scheduler.free(request_id)
        assert fleet.scheduler.believed_blocks(119.0) == 10
        assert fleet.scheduler.believed_blocks(120.0) == 0  # though nobody has asked for the prompt

    def test_for_one_worker_among_others_with_events(self) -> None:
        fleet = make_fleet(A, B)
        fleet.feeds.discard(B.instance_id)
        for request_id, worker in (("a", A), ("b", B)):
            fleet.sent(request_id, prompt(0), eligible=only(worker))
            fleet.scheduler.first_token(request_id, 0.0)
            fleet.scheduler.free(request_id)
        fleet.now_s = 60.0
        assert fleet.worker("r", prompt(0)) == B

    def test_once_events_are_heard_they_tell(self) -> None:
        fleet = make_fleet(A, feeds=False)
        fleet.sent("r", prompt(0))
        fleet.scheduler.first_token("r", 0.0)
        fleet.scheduler.free("r")
        assert fleet.cached(prompt(0)) == {A: 10}
        fleet.feeds.add(A.instance_id)
        assert fleet.cached(prompt(0)) == {}

    def test_while_they_are_not_heard_what_they_had_said_counts_where_it_is_more(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(A, prompt(0, 32))
        fleet.stored(B, prompt(0, 8))
        fleet.feeds.clear()
        for request_id, worker in (("a", A), ("b", B)):
            fleet.sent(request_id, prompt(0, 20), eligible=only(worker))
            fleet.scheduler.first_token(request_id, 0.0)
            fleet.scheduler.free(request_id)
        assert fleet.cached(prompt(0)) == {A: 8, B: 5}


class TestWorkersComeAndGo:
    def test_with_a_worker_go_its_requests(self) -> None:
        fleet = make_fleet(A, B)
        fleet.sent("r", prompt(0), eligible=only(A))
        fleet.set_workers(B)
        assert fleet.loads() == {B: (0, 0, 0)}
        assert len(fleet.scheduler.sequences) == 0
        fleet.scheduler.first_token("r", 0.0)
        fleet.scheduler.free("r")
        assert fleet.worker("s", prompt(0)) == B

    def test_one_that_returns_has_nothing(self) -> None:
        fleet = make_fleet(A, B)
        fleet.sent("old", prompt(0), eligible=only(A))
        fleet.says(A, WorkerLoad(kv_used_blocks=99))
        fleet.set_workers(B)
        fleet.set_workers(A, B)
        assert fleet.loads()[A] == (0, 0, 0)
        assert fleet.cached(prompt(0)) == {}
        assert {fleet.look(prompt(0)).worker for _ in range(30)} == {A, B}

        fleet.sent("new", prompt(0), eligible=only(A))
        fleet.scheduler.free("old")
        assert fleet.loads()[A] == (1, 40, 10)
        assert fleet.cached(prompt(0)) == {A: 10}

    def test_limits_may_change_while_requests_run(self) -> None:
        fleet = make_fleet(A)
        fleet.sent("r", prompt(0))
        fleet.scheduler.set_workers({A: WorkerLimits(max_num_batched_tokens=7)})
        assert fleet.loads()[A] == (1, 40, 10)

    def test_nothing_is_left_behind(self) -> None:
        fleet = make_fleet(A, B)
        for i in range(20):
            fleet.sent(str(i), prompt(100 * i))
        fleet.set_workers()
        assert not fleet.scheduler.sequences._activities
        assert fleet.scheduler.sequences.active_blocks == 0


class TestSessions:
    def test_a_session_stays_where_it_was(self) -> None:
        fleet = make_fleet(A, B, C)
        worker = fleet.worker("0", prompt(0), session_id="s")
        fleet.scheduler.free("0")
        assert {fleet.look(prompt(100), session_id="s").worker for _ in range(30)} == {worker}
        assert {fleet.look(prompt(100)).worker for _ in range(50)} == {A, B, C}

    def test_softly_but_not_with_a_much_busier_worker(self) -> None:
        fleet = make_fleet(A, B)
        fleet.sent("0", prompt(0), session_id="s", eligible=only(A))
        fleet.scheduler.free("0")
        fleet.busy(A, 16)
        assert fleet.worker("1", prompt(100), session_id="s") == A
        fleet.busy(A, 80)
        assert fleet.worker("2", prompt(200), session_id="s") == B
        assert fleet.look(prompt(300, 4), session_id="s").worker == B  # and there it stays

    def test_hard_whatever_it_costs(self) -> None:
        fleet = make_fleet(A, B, router_session_affinity="hard")
        fleet.sent("0", prompt(0), session_id="s", eligible=only(A))
        fleet.stored(B, prompt(100))
        fleet.busy(A, 400)
        assert fleet.worker("1", prompt(100), session_id="s") == A

    def test_as_long_as_the_worker_lives_and_may(self) -> None:
        fleet = make_fleet(A, B, router_session_affinity="hard")
        fleet.sent("0", prompt(0), session_id="s", eligible=only(A))
        assert fleet.worker("1", prompt(100), session_id="s", eligible=only(B)) == B
        fleet.set_workers(A)
        assert fleet.worker("2", prompt(200), session_id="s") == A

    def test_off(self) -> None:
        fleet = make_fleet(A, B, router_session_affinity="off")
        fleet.sent("0", prompt(0), session_id="s", eligible=only(A))
        fleet.scheduler.free("0")
        assert {fleet.look(prompt(100), session_id="s").worker for _ in range(30)} == {A, B}

    def test_forgotten_in_time(self) -> None:
        fleet = make_fleet(A, B, router_session_ttl_secs=10.0)
        fleet.sent("0", prompt(0), session_id="s", eligible=only(A))
        fleet.scheduler.free("0")
        fleet.now_s = 10.0
        assert {fleet.look(prompt(100), session_id="s").worker for _ in range(30)} == {A, B}


def full_fleet(policy: str = "fcfs", **settings: Any) -> tuple[Fleet, list[str]]:
    """Two workers, each with more to prefill than one of its batches, and the requests that make it so."""
    fleet = make_fleet(A, B, router_queue_threshold=1.0, router_queue_policy=policy, **settings)
    return fleet, [fleet.busy(worker, BATCH_TOKENS + 20) for worker in (A, B)]


class TestQueue:
    def test_requests_wait_while_all_are_busy(self) -> None:
        fleet, _ = full_fleet()
        assert fleet.submit("r", prompt(0)) is None
        assert fleet.scheduler.queued == 1
        assert fleet.admitted() == {}
        assert sum(load[0] for load in fleet.loads().values()) == 2

    @pytest.mark.parametrize("how", ["first token", "end"])
    def test_and_go_when_one_is_not(self, how: str) -> None:
        fleet, (on_a, _) = full_fleet()
        fleet.submit("r", prompt(0))
        fleet.now_s = 3.0
        if how == "end":
            fleet.scheduler.free(on_a)
        else:
            fleet.scheduler.first_token(on_a, fleet.now_s)
        (admitted,) = fleet.scheduler.take_admitted(fleet.now_s)
        assert admitted.decision is not None
        assert (admitted.decision.worker, admitted.decision.queued_s) == (A, 3.0)
        assert fleet.scheduler.queued == 0
        assert fleet.loads()[A][1] == 40

    def test_no_more_go_than_there_is_room_for(self) -> None:
        fleet, (on_a, _) = full_fleet()
        for i in range(4):
            fleet.submit(str(i), prompt(1000 * i, 60))
        fleet.scheduler.free(on_a)
        assert fleet.admitted() == {"0": A, "1": A}
        assert fleet.scheduler.queued == 2

    def test_nobody_overtakes_those_that_wait(self) -> None:
        fleet, (on_a, _) = full_fleet()
        fleet.submit("0", prompt(0))
        fleet.scheduler.free(on_a)
        assert fleet.submit("1", prompt(100)) is None
        assert list(fleet.admitted()) == ["0", "1"]

    @pytest.mark.parametrize(("policy", "order"), [("fcfs", "012"), ("lcfs", "210"), ("wspt", "120")])
    def test_policy(self, policy: str, order: str) -> None:
        fleet, (on_a, _) = full_fleet(policy)
        for i, tokens in enumerate((90, 30, 60)):
            fleet.submit(str(i), prompt(1000 * i, tokens))
        fleet.set_workers(A, B, C)
        fleet.scheduler.free(on_a)
        assert "".join(fleet.admitted()) == order

    def test_the_shortest_is_the_one_with_the_least_to_prefill(self) -> None:
        fleet, (on_a, _) = full_fleet("wspt")
        fleet.stored(A, prompt(0, 80))
        fleet.stored(WorkerId(9), prompt(1000, 60))  # which cannot serve it
        fleet.submit("1", prompt(1000, 60))
        fleet.submit("0", prompt(0, 90))
        fleet.scheduler.free(on_a)
        assert "".join(fleet.admitted()) == "01"

    def test_priority(self) -> None:
        fleet, (on_a, _) = full_fleet()
        fleet.submit("0", prompt(0))
        fleet.submit("1", prompt(100), priority=1.0)
        fleet.scheduler.free(on_a)
        assert list(fleet.admitted()) == ["1", "0"]

    def test_bounded(self) -> None:
        fleet, _ = full_fleet(router_queue_size=2)
        for i in range(2):
            fleet.submit(str(i), prompt(100 * i))
        with pytest.raises(OverloadedError):
            fleet.submit("2", prompt(200))
        fleet.scheduler.free("0")
        assert fleet.submit("2", prompt(200)) is None
        assert fleet.submit("2", prompt(200)) is None  # the same request, in its own place
        assert fleet.scheduler.queued == 2

    def test_withdrawn_while_it_waits(self) -> None:
        fleet, (on_a, _) = full_fleet()
        fleet.submit("0", prompt(0))
        fleet.submit("1", prompt(100))
        fleet.scheduler.free("0")
        fleet.scheduler.free(on_a)
        assert fleet.admitted() == {"1": A}
        assert "0" not in fleet.scheduler.sequences

    def test_one_that_waits_for_a_certain_worker_holds_up_nobody(self) -> None:
        fleet = make_fleet(A, B, router_queue_threshold=1.0)
        fleet.busy(A, BATCH_TOKENS + 20)
        assert fleet.worker("pinned", prompt(0), eligible=only(A)) == A
        assert fleet.worker("r", prompt(100)) == B

    def test_when_its_worker_is_gone(self) -> None:
        fleet, _ = full_fleet()
        fleet.submit("pinned", prompt(0), eligible=only(A))
        fleet.set_workers(B, C)
        assert fleet.admitted() == {"pinned": None}
        assert "pinned" not in fleet.scheduler.sequences

    def test_when_all_workers_are_gone(self) -> None:
        fleet, _ = full_fleet()
        fleet.submit("0", prompt(0))
        fleet.set_workers()
        assert fleet.admitted() == {"0": None}
        assert fleet.scheduler.queued == 0

    def test_a_worker_that_does_not_say_how_much_it_takes_takes_all(self) -> None:
        fleet, _ = full_fleet()
        fleet.scheduler.set_workers({A: WorkerLimits(max_num_batched_tokens=BATCH_TOKENS), B: WorkerLimits()})
        assert fleet.worker("r", prompt(0)) in (A, B)

    def test_requests_that_were_swept_make_room(self) -> None:
        fleet, _ = full_fleet(router_active_request_expiry_secs=60.0)
        fleet.submit("0", prompt(0))
        assert len(fleet.scheduler.sweep(61.0)) == 2
        assert fleet.admitted().keys() == {"0"}

    def test_others_keep_workers_busy_too(self) -> None:
        fleet = make_fleet(A, router_queue_threshold=1.0)
        fleet.says(A, WorkerLoad(prefill_tokens=BATCH_TOKENS + 1))
        assert fleet.submit("r", prompt(0)) is None
        assert fleet.admitted() == {}
        fleet.says(A, WorkerLoad(prefill_tokens=BATCH_TOKENS))
        assert fleet.admitted() == {"r": A}

    def test_without_a_threshold_nobody_waits(self) -> None:
        fleet = make_fleet(A)
        for i in range(50):
            fleet.sent(str(i), prompt(100 * i))


class TestExplanation:
    def test_candidates(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(B, prompt(0, 16))
        fleet.busy(A, 8)
        decision = fleet.sent("r", prompt(0), explain=True)
        a, b = decision.candidates
        assert (a.worker, a.cost, a.overlap, a.prefill_tokens, a.decode_blocks) == (A, 24, Overlap(), 8, 2)
        assert (b.worker, b.cost, b.overlap, b.prefill_tokens, b.decode_blocks) == (B, 16, Overlap(device=4), 0, 0)
        assert decision.no_overlap_reason is None

    def test_only_where_it_is_wished(self) -> None:
        decision = make_fleet(A, B).sent("r", prompt(0))
        assert (decision.candidates, decision.no_overlap_reason) == ((), None)

    def test_too_few_tokens(self) -> None:
        assert make_fleet(A).reason([1, 2]) == "the prompt has 2 tokens, a block 4"

    def test_nothing_known(self) -> None:
        assert make_fleet(A).reason(prompt(0)) == "nothing is known to be cached anywhere"

    def test_not_cached(self) -> None:
        fleet = make_fleet(A)
        fleet.stored(A, prompt(100))
        assert fleet.reason(prompt(0)) == "no worker has the first block of the prompt"

    def test_dearer_elsewhere(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(A, prompt(0, 8))
        fleet.busy(A, 40)
        assert fleet.reason(prompt(0)) == "another worker has a part of the prompt, but costs more"

    def test_drawn_by_temperature(self) -> None:
        fleet = make_fleet(A, B, router_temperature=1e9)
        fleet.stored(A, prompt(0))
        reasons = {fleet.reason(prompt(0)) for _ in range(30)}
        assert reasons == {None, "the temperature chose a worker that has nothing of the prompt"}

    def test_not_allowed_elsewhere(self) -> None:
        fleet = make_fleet(A, B)
        fleet.stored(A, prompt(0))
        reason = fleet.reason(prompt(0), eligible=only(B))
        assert reason == "no worker that may serve the request has anything of the prompt, but another has"

    def test_too_many_requests_elsewhere(self) -> None:
        fleet = make_fleet(A, B, C, overlap_score_weight=1000.0)
        fleet.stored(A, prompt(0))
        for i in range(10):
            fleet.sent(str(i), prompt(100 * i + 100, 4), eligible=only(A))
        assert fleet.reason(prompt(0)) == "the workers that have a part of the prompt have too many requests already"
        assert {c.worker for c in fleet.look(prompt(0), explain=True).candidates} == {A, B, C}

    @pytest.mark.parametrize("affinity", ["soft", "hard"])
    def test_bound_to_its_session(self, affinity: str) -> None:
        fleet = make_fleet(A, B, router_session_affinity=affinity)
        fleet.sent("0", prompt(100), session_id="s", eligible=only(B))
        fleet.scheduler.free("0")
        fleet.stored(A, prompt(0, 16))
        assert fleet.reason(prompt(0), session_id="s") == "the session stays with its worker"

    def test_not_with_its_session(self) -> None:
        fleet = make_fleet(A, B)
        fleet.sent("0", prompt(100), session_id="s", eligible=only(B))
        fleet.stored(A, prompt(0, 16))
        fleet.busy(A, 60)
        fleet.busy(B, 100)
        decision = fleet.look(prompt(200), session_id="s", explain=True)
        assert (decision.worker, decision.no_overlap_reason) == (A, "no worker has the first block of the prompt")

    def test_another_salt(self) -> None:
        fleet = make_fleet(A)
        fleet.stored(A, prompt(0))
        assert fleet.reason(prompt(0), seed=7) == "the prompt is cached for another LoRA adapter or cache salt"
        fleet.stored(A, prompt(0), seed=7)
        assert fleet.reason(prompt(0), seed=7) is None

    @pytest.mark.parametrize("running", [True, False])
    def test_another_salt_of_which_no_event_has_told(self, running: bool) -> None:
        fleet = make_fleet(A, feeds=running)
        fleet.sent("r", prompt(0))
        if not running:  # it is believed to be cached
            fleet.scheduler.first_token("r", 0.0)
            fleet.scheduler.free("r")
        assert fleet.reason(prompt(0), seed=7) == "the prompt is cached for another LoRA adapter or cache salt"
