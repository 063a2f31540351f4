"""What every test shares: eight emulated CPU devices, and no thread pool larger than this worker's share.

The environment has to be set before JAX makes its backend, and pytest imports this file first.
Programs compiled by one worker of `launch/test.sh` are reused by the others through the compilation
cache in JAX_COMPILATION_CACHE_DIR, which the script sets.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Verbs started by tests as processes of their own find the project wherever they run.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# The same examples in every run: a failure is of the change that it appears with, and can be seen again.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

# A shell's background job ignores Ctrl-C, and so would every process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from gcs_server import store  # noqa: E402, F401  (fixtures; after the environment is set)
from store import bucket  # noqa: E402, F401


@pytest.fixture(autouse=True, scope="session")
def _one_share_of_the_cores() -> None:
    """Holds PyTorch, where a test compares with it, to the threads this worker was given."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _flags_of_this_test_alone() -> Iterator[None]:
    """Verbs define their flags when imported: what one test imports must not clash with what the next one does."""
    from absl import flags

    before = set(flags.FLAGS)
    yield
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        added = [flag.name for flag in defined if flag.name not in before]
        if added and module.startswith(("launch.", "benchmarks.")):
            for name in added:
                delattr(flags.FLAGS, name)
            sys.modules.pop(module, None)
