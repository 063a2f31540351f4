"""Which combinations never appear in training, as pure functions of the objects' bindings.

A *binding* is a (colour, shape). Two kinds of combination are held out:

    pair     about one in ten unordered pairs of different bindings, marked by a hash: both bindings
             are well known, only never in one picture
    binding  the few bindings of `vocabulary.HELD_OUT_BINDINGS`: never drawn at all
"""

from __future__ import annotations

import itertools
import zlib

from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Binding, Scene

ONE_IN = 10


def pair_held_out(a: Binding, b: Binding) -> bool:
    """Whether the unordered pair is marked. Equal bindings (counts) never are."""
    if a == b:
        return False
    text = "|".join(" ".join(binding) for binding in sorted((a, b)))
    return zlib.crc32(text.encode()) % ONE_IN == 0


def binding_held_out(scene: Scene) -> bool:
    """Whether any object has a binding that training never draws."""
    return any(o.binding in v.HELD_OUT_BINDINGS for o in scene.objects)


def held_out(scene: Scene) -> bool:
    """Whether the scene contains anything that training must not see."""
    bindings = sorted({o.binding for o in scene.objects})
    pairs = itertools.combinations(bindings, 2)
    return binding_held_out(scene) or any(pair_held_out(a, b) for a, b in pairs)
