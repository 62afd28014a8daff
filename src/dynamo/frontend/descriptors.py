"""Descriptors enough for all connections that there may be."""

import logging
import resource

logger = logging.getLogger(__name__)

_OTHERS = 512  # workers' connections, files, refusals


def reserve_descriptors(connections: int) -> None:
    """Raises this process's limit, as far as it may, to what so many connections need; says so if that is less."""
    needed = connections + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed < needed:
        logger.warning(
            "there are descriptors for some %d connections, fewer than --http-max-connections %d (ulimit -n)",
            max(0, allowed - _OTHERS),
            connections,
        )
