"""`dynamo kvbm inspect|clear|verify|stop`: looks after the block manager of this host."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from dynamo.errors import ConnectionLostError, DynamoError
from dynamo.kvbm.admin import ask
from dynamo.kvbm.socket_path import SOCKET_VARIABLE, default_socket
from dynamo.protocols.kvbm import (
    Clear,
    Done,
    Figures,
    Inspect,
    PoolFigures,
    Reply,
    Stop,
    StorageTier,
    TierFigures,
    Verify,
)

PROG = "dynamo kvbm"
_TIMEOUT_S = {"inspect": 10.0, "clear": 60.0, "verify": 3600.0, "stop": 10.0}  # of silence
_DESCRIPTION = """\
inspect shows what the pools of this host's block manager hold; clear forgets blocks; verify reads all that the disk
holds and drops what is not what was written; stop ends the service. Engines go on without it.
"""


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    path = Path(arguments.kvbm_socket) if arguments.kvbm_socket else default_socket()
    request: Inspect | Clear | Verify | Stop
    match arguments.action:
        case "inspect":
            request = Inspect()
        case "clear":
            request = Clear(
                tiers=[StorageTier(tier) for tier in arguments.tier or ("host",)], namespace=arguments.namespace
            )
        case "verify":
            request = Verify(namespace=arguments.namespace)
        case _:
            request = Stop()
    try:
        reply = ask(path, request, _TIMEOUT_S[arguments.action])
    except ConnectionLostError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        print(
            "A worker with --kvbm-host-gb starts one. That of `dynamo serve` listens elsewhere: say where"
            f" by --kvbm-socket or {SOCKET_VARIABLE}.",
            file=sys.stderr,
        )
        return 1
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    print(_json(reply) if arguments.json else "\n".join(_lines(arguments.action, reply)))
    return 1 if isinstance(reply, Done) and reply.dropped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("action", choices=tuple(_TIMEOUT_S))
    parser.add_argument("--kvbm-socket", metavar="PATH", help=f"where it listens (env: {SOCKET_VARIABLE})")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--tier",
        action="append",
        choices=[tier.value for tier in StorageTier if tier is not StorageTier.PEER],
        help="for clear, several if need be (default: host)",
    )
    parser.add_argument(
        "--namespace", type=_namespace, default=b"", metavar="HEX", help="for clear and verify: of one pool only"
    )
    return parser


def _namespace(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no pool's identifier, which `{PROG} inspect` shows; a deployment's service is found by"
            f" --kvbm-socket"
        ) from None


def _json(reply: Reply) -> str:
    return msgspec.json.format(msgspec.json.encode(_plain(reply))).decode()


def _plain(reply: Reply) -> object:
    """Named fields, and namespaces as people write them."""
    if isinstance(reply, Figures):
        return {"pools": [msgspec.structs.asdict(pool) | {"namespace": pool.namespace.hex()} for pool in reply.pools]}
    return msgspec.structs.asdict(reply)


def _lines(action: str, reply: Reply) -> Iterator[str]:
    match reply:
        case Figures(pools=[]):
            yield "no pools: no engine has used this block manager yet"
        case Figures():
            for pool in reply.pools:
                yield from _pool_lines(pool)
        case Done() if action == "verify":
            yield f"{reply.checked} blocks read, {reply.dropped} dropped"
        case _:
            yield "done"


def _pool_lines(pool: PoolFigures) -> Iterator[str]:
    engines = f"{pool.engines} engine{'' if pool.engines == 1 else 's'}"
    yield f"{pool.description}  {pool.namespace.hex()}"
    yield f"  {engines}, blocks of {pool.block_tokens} tokens, {pool.slot_bytes / 1e6:.3f} MB each,"
    yield f"  {pool.held_slots} slots in use,"
    yield f"  {pool.lookups} lookups ({pool.late_lookups} cut short), {pool.onboarded_blocks} blocks onboarded,"
    yield f"  {pool.offloaded_blocks} offloaded, {pool.dropped_offloads} not, {pool.dropped_writes} not written down"
    yield f"  {'tier':8}{'blocks':>9}{'GB':>9}{'of':>9}{'hits':>10}{'misses':>10}{'evicted':>9}{'corrupt':>9}  state"
    for tier in pool.tiers:
        yield _tier_line(tier)


def _tier_line(tier: TierFigures) -> str:
    capacity = f"{tier.capacity_bytes / 1e9:.2f}" if tier.capacity_bytes else "-"
    return (
        f"  {tier.tier.value:8}{tier.blocks:>9}{tier.used_bytes / 1e9:>9.2f}{capacity:>9}{tier.hits:>10}"
        f"{tier.misses:>10}{tier.evicted_blocks:>9}{tier.checksum_failures:>9}  {tier.state}"
    )
