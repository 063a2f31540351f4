"""`python small_launch.py VERB WORDS`: a verb on a network of a few weights, with data that take their time.

    EDIFFI_TEST_BATCH_SECONDS   how long a batch takes
    EDIFFI_TEST_HANG_AT         position of the data order whose batch never comes
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from training_fakes import Net  # noqa: E402

from ediffi_jax import models  # noqa: E402
from ediffi_jax.data.batches import SyntheticAssembler  # noqa: E402

make_batch = SyntheticAssembler.__call__


def slow_batch(self, start: int):
    """The same batch, later or never."""
    time.sleep(float(os.environ.get("EDIFFI_TEST_BATCH_SECONDS", "0")))
    while start >= int(os.environ.get("EDIFFI_TEST_HANG_AT", sys.maxsize)):
        time.sleep(1)
    return make_batch(self, start)


if __name__ == "__main__":
    models.build = lambda config: Net(channels=8)
    SyntheticAssembler.__call__ = slow_batch
    verb = sys.argv[1]
    sys.argv = [f"launch/{verb}.py", *sys.argv[2:]]
    runpy.run_module(f"launch.{verb}", run_name="__main__")
