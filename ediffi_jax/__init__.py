"""JAX implementation of eDiff-I.

```python
import ediffi_jax as ed

cascade = ed.load("scenes")
images = cascade.sample(["a red circle left of a blue square"], num=4, seed=0)  # uint8 [4, 256, 256, 3]
```

The names below are fetched when first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> (module, attribute); attribute None is the module itself.
_NAMES = {
    "load": ("cascade", "load"),
    "Cascade": ("cascade", "Cascade"),
    "CascadeError": ("cascade", "CascadeError"),
    "Stage": ("stage", "Stage"),
    "Conditioning": ("conditioning", "Conditioning"),
    "Ensemble": ("experts", "Ensemble"),
    "UserError": ("errors", "UserError"),
    "contact_sheet": ("pictures", "contact_sheet"),
    "encoders": ("encoders", None),
    "guidance": ("guidance", None),
    "paint": ("paint", None),
    "samplers": ("samplers", None),
    "show": ("showing", "show"),
    "studio": ("studio_page", "studio"),
}

__all__ = ["__version__", *_NAMES]  # noqa: PLE0604 (the names are fetched by __getattr__)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    found = importlib.import_module(f"{__name__}.{module}")
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
