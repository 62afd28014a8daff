from prometheus_client import CollectorRegistry, generate_latest

from dynamo.kvbm.figures import kvbm_metrics
from dynamo.protocols.kvbm import PoolFigures, StorageTier, TierFigures


def figures(engines: int = 1) -> PoolFigures:
    return PoolFigures(
        namespace=b"\xab" * 16,
        description="smollm2 bf16",
        slot_bytes=1000,
        block_tokens=16,
        engines=engines,
        held_slots=8,
        lookups=4,
        late_lookups=1,
        onboarded_blocks=7,
        onboard_s=0.5,
        dropped_offloads=2,
        tiers=[
            TierFigures(tier=StorageTier.HOST, state="ready", blocks=3, used_bytes=3000, capacity_bytes=9000, hits=5),
            TierFigures(tier=StorageTier.DISK, state="no space left", checksum_failures=1, queued=6, read_s=0.25),
        ],
    )


def text(*pools: PoolFigures) -> str:
    registry = CollectorRegistry()
    registry.register(kvbm_metrics(lambda: pools))
    return generate_latest(registry).decode()


def test_every_figure_has_its_series() -> None:
    shown = text(figures())
    pool, host, disk = (f'{{pool="smollm2 bf16 (abababab)"{tier}}}' for tier in ("", ',tier="host"', ',tier="disk"'))
    for line in (
        f"dynamo_kvbm_engines{pool} 1.0",
        f"dynamo_kvbm_held_slots{pool} 8.0",
        f"dynamo_kvbm_lookups_total{pool} 4.0",
        f"dynamo_kvbm_late_lookups_total{pool} 1.0",
        f"dynamo_kvbm_onboarded_bytes_total{pool} 7000.0",
        f"dynamo_kvbm_onboard_seconds_total{pool} 0.5",
        f"dynamo_kvbm_dropped_offloads_total{pool} 2.0",
        f"dynamo_kvbm_blocks{host} 3.0",
        f"dynamo_kvbm_hits_total{host} 5.0",
        f"dynamo_kvbm_tier_ready{host} 1.0",
        f"dynamo_kvbm_tier_ready{disk} 0.0",
        f"dynamo_kvbm_checksum_failures_total{disk} 1.0",
        f"dynamo_kvbm_queued_blocks{disk} 6.0",
        f"dynamo_kvbm_read_seconds_total{disk} 0.25",
    ):
        assert line in shown.splitlines(), line


def test_nothing_that_is_counted_is_left_out() -> None:
    """A field that somebody adds has to be shown, or be named here."""
    not_shown = {"namespace", "description", "slot_bytes", "block_tokens", "tiers", "tier", "state"}
    shown = text(
        PoolFigures(
            **{name: index for index, name in enumerate(PoolFigures.__struct_fields__, 1001) if name not in not_shown},
            namespace=b"",
            description="",
            slot_bytes=1,
            block_tokens=1,
            tiers=[
                TierFigures(
                    **{n: i for i, n in enumerate(TierFigures.__struct_fields__, 2001) if n not in not_shown},
                    tier=StorageTier.HOST,
                    state="ready",
                )
            ],
        )
    )
    for first, fields in ((1001, PoolFigures.__struct_fields__), (2001, TierFigures.__struct_fields__)):
        for number, field in enumerate(fields, first):
            assert field in not_shown or f" {number}.0" in shown, field


def test_no_pools_no_series() -> None:
    assert "dynamo_kvbm_blocks{" not in text()
