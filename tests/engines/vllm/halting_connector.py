"""The block manager's connector, whose copies come to a halt in the midst of a block when a test wants them to.

The test makes a file `save` or `load` in the directory that HALT names; it is called `save-halted` or `load-halted`
from when a copy of that kind stands still, for ever. All else is as in production.
"""

import os
import threading
from pathlib import Path

import numpy as np

from dynamo.engines.vllm import kvbm_copier
from dynamo.engines.vllm.kvbm_connector import DynamoKvbmConnector

__all__ = ["DynamoKvbmConnector"]

HALT = "DYN_TEST_HALT"


class HaltingCopier(kvbm_copier.CpuCopier):
    def _copy_block(self, block: int, slot: int, *, out: bool) -> None:
        wanted = Path(os.environ[HALT]) / ("save" if out else "load")
        if wanted.exists():
            layers = self._cache[0][:, block]
            half = layers[:, : layers.shape[1] // 2]
            image = self._slots[slot, : half.size].reshape(half.shape)
            np.copyto(*((image, half) if out else (half, image)))
            wanted.rename(f"{wanted}-halted")
            threading.Event().wait()
        super()._copy_block(block, slot, out=out)


kvbm_copier.CpuCopier = HaltingCopier  # type: ignore[misc]
