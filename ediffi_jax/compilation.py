"""Compiled programs kept between runs, and the number format a device computes in.

JAX compiles each program once per process; its *persistent compilation cache* keeps the result on
disk, so a second process with the same program starts at once. Every verb and `ediffi_jax.load` call
`enable_cache()` first. Programs compiled for one processor may not run on another, and a home folder
may be shared among machines: each kind of processor has its own subfolder.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

from ediffi_jax.errors import UserError, nearest

CACHE_VARIABLE = "EDIFFI_CACHE"
OFF = ("0", "off", "none")
DTYPES = ("auto", "float32", "bfloat16")
# Below this many seconds a program is compiled again sooner than it is looked up.
MIN_COMPILE_SECONDS = 0.2


class CompilationError(UserError):
    """A compute dtype that does not exist."""


def enable_cache() -> Path | None:
    """Turns the persistent compilation cache on, unless the user has set one or said no.

    The folder is ``$EDIFFI_CACHE``, else ``$XDG_CACHE_HOME/ediffi_jax/xla``, else
    ``~/.cache/ediffi_jax/xla``; ``EDIFFI_CACHE=off`` leaves it off. A folder that cannot be made only
    costs the compilation: the cache then stays off.

    Returns:
        The folder in use, or None.
    """
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    wanted = os.environ.get(CACHE_VARIABLE, "")
    if wanted.lower() in OFF:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = (Path(wanted).expanduser() if wanted else home / "ediffi_jax" / "xla") / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _processor() -> str:
    """Names this machine's instruction set, e.g. ``x86_64-1f09c3a2``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(kind).encode()).hexdigest()[:8]}"


def compute_dtype(name: str = "auto") -> str:
    """The dtype networks compute in; parameters, norms and softmax stay float32 either way.

    Args:
        name: ``float32``, ``bfloat16``, or ``auto``: bfloat16 on TPUs and on GPUs that have it in
            hardware (compute capability 8.0 or newer), else float32.

    Returns:
        ``"float32"`` or ``"bfloat16"``.

    Raises:
        CompilationError: another name.
    """
    if name not in DTYPES:
        raise CompilationError(f"unknown compute dtype {name!r}{nearest(name, DTYPES)}")
    if name != "auto":
        return name
    device = jax.local_devices()[0]
    if device.platform == "gpu":
        capability = str(getattr(device, "compute_capability", "0"))
        return "bfloat16" if float(capability) >= 8.0 else "float32"
    return "bfloat16" if device.platform == "tpu" else "float32"
