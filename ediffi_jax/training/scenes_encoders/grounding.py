"""What every word and every whole caption or picture means, as class labels, and the loss on them.

*Words.* For each token of a word that belongs to an object: the object's colour, shape, size, texture, role
(left, right, top, bottom, inner, outer, …), third of the picture across and down, how many there are, and
the colour and shape of its partner in the relation. *Wholes.* Objects in reading order (left before right,
top before bottom, inner before outer), their arrangement, number, style and background: the same labels for a
caption's pooled vector as for its picture's, read by the same linear heads.

A label of -1 means "not defined here" and costs nothing:

    loss = sum_f CE(logits_f, label_f),   each CE a mean over its defined labels

A sum, not a mean: the fields that are easy fall silent, and must not thin out those that are hard.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.captions import place
from ediffi_jax.data.scenes.scene import Scene
from ediffi_jax.data.scenes.shapes import SDFS

COLOURS, SHAPES = tuple(v.COLOURS), v.SHAPES
ROLES = ("left", "right", "top", "bottom", "inner", "outer", "alone", "counted", "listed")
ROLE_OF = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
    "inside": ("inner", "outer"),
}
ARRANGEMENTS = ("horizontal", "vertical", "nested", "single", "count", "mixed")
PLACES = ("", "on the left", "on the right", "at the top", "at the bottom")

# Field -> number of classes; a slot's "none" is one class more.
TOKEN_FIELDS = {
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "size": len(v.SIZES),
    "texture": len(v.TEXTURES),
    "role": len(ROLES),
    "partner_colour": len(COLOURS),
    "partner_shape": len(SHAPES),
    "across": 3,
    "down": 3,
    "count": 5,
}
SCENE_FIELDS = {
    "colour_0": len(COLOURS),
    "shape_0": len(SHAPES),
    "size_0": len(v.SIZES),
    "texture_0": len(v.TEXTURES),
    "colour_1": len(COLOURS) + 1,
    "shape_1": len(SHAPES) + 1,
    "size_1": len(v.SIZES),
    "texture_1": len(v.TEXTURES),
    "arrangement": len(ARRANGEMENTS),
    "count": 5,
    "place": len(PLACES),
    "style": len(v.STYLES),
    "background": len(v.BACKGROUNDS),
}
# Per patch of a picture: what covers its centre; the background is one class more.
PATCH_FIELDS = {"colour": len(COLOURS) + 1, "shape": len(SHAPES) + 1}
PATCHES = 8  # to a side


def _third(position: float) -> int:
    return int(position > 0.4) + int(position > 0.6)


def object_labels(scene: Scene) -> Int[np.ndarray, "objects fields"]:
    """The token labels of each object of the scene, int32, one column per entry of `TOKEN_FIELDS`."""
    grouped = {"single": ("alone",), "count": ("counted",) * 4, "mixed": ("listed",) * 4}
    roles = ROLE_OF[scene.relation] if scene.relation else grouped[scene.kind]
    rows = []
    for i, thing in enumerate(scene.objects):
        partner = scene.objects[1 - i] if scene.relation else None
        counted = sum(o.look == thing.look for o in scene.objects)
        rows.append([
            COLOURS.index(thing.colour),
            SHAPES.index(thing.shape),
            v.SIZES.index(thing.size),
            v.TEXTURES.index(thing.texture),
            ROLES.index(roles[i]),
            COLOURS.index(partner.colour) if partner else -1,
            SHAPES.index(partner.shape) if partner else -1,
            -1 if counted > 1 else _third(thing.x),
            -1 if counted > 1 else _third(thing.y),
            counted,
        ])
    return np.array(rows, np.int32)


def scene_labels(scene: Scene) -> Int[np.ndarray, "fields"]:
    """The labels of the whole, int32, one per entry of `SCENE_FIELDS`."""
    objects = list(scene.objects)
    if scene.relation in ("right of", "below"):
        objects.reverse()
    kind = scene.kind
    first, second = objects[0], objects[1] if kind == "relation" else None
    axis = {"left of": "horizontal", "right of": "horizontal", "above": "vertical", "below": "vertical"}
    arrangement = (axis.get(scene.relation, "nested")) if kind == "relation" else kind
    known = kind != "mixed"
    spot = place(first) if kind == "single" else None
    return np.array([
        COLOURS.index(first.colour) if known else -1,
        SHAPES.index(first.shape) if known else -1,
        v.SIZES.index(first.size) if known else -1,
        v.TEXTURES.index(first.texture) if known else -1,
        COLOURS.index(second.colour) if second else len(COLOURS) if known else -1,
        SHAPES.index(second.shape) if second else len(SHAPES) if known else -1,
        v.SIZES.index(second.size) if second else -1,
        v.TEXTURES.index(second.texture) if second else -1,
        ARRANGEMENTS.index(arrangement),
        len(scene.objects),
        PLACES.index(spot) if spot in PLACES else -1,
        v.STYLES.index(scene.style),
        list(v.BACKGROUNDS).index(scene.background),
    ], np.int32)


def patch_labels(scene: Scene) -> Int[np.ndarray, "patches fields"]:
    """Colour and shape of the uppermost object over each patch's centre, int32, row by row."""
    labels = np.tile(np.array([len(COLOURS), len(SHAPES)], np.int32), (PATCHES, PATCHES, 1))
    at = (np.arange(PATCHES, dtype=np.float32) + 0.5) / PATCHES
    for thing in reversed(scene.objects):
        x, y = (at[None, :] - thing.x) / thing.radius, (at[:, None] - thing.y) / thing.radius
        labels[SDFS[thing.shape](x, y) < 0] = COLOURS.index(thing.colour), SHAPES.index(thing.shape)
    return labels.reshape(-1, 2)


def split(logits: Float[Array, "... classes"], fields: dict[str, int]) -> dict[str, Float[Array, "... n"]]:
    """Cuts one wide linear layer's output into the fields' logits."""
    cuts = np.cumsum(list(fields.values()))[:-1]
    return dict(zip(fields, jnp.split(logits, cuts, axis=-1)))


def loss(
    logits: Float[Array, "... classes"], labels: Int[Array, "... fields"], fields: dict[str, int]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of the fields' cross-entropies, and each field's accuracy, over the labels that are defined."""
    losses, accuracy = [], {}
    for i, (name, part) in enumerate(split(logits.astype(jnp.float32), fields).items()):
        label, defined = jnp.maximum(labels[..., i], 0), labels[..., i] >= 0
        total = jnp.maximum(defined.sum(), 1)
        entropy = optax.softmax_cross_entropy_with_integer_labels(part, label)
        losses.append(jnp.where(defined, entropy, 0).sum() / total)
        accuracy[name] = jnp.where(defined, part.argmax(-1) == label, False).sum() / total
    return jnp.stack(losses).sum(), accuracy
