"""A scene: the exact description from which picture, caption and ground truth are made.

Coordinates are fractions of the picture, x to the right and y *down*, so one scene has the same
meaning at every resolution. In a scene with a relation, ``objects[0] relation objects[1]`` holds.
"""

from __future__ import annotations

import dataclasses
import json

from ediffi_jax.data.scenes import vocabulary as v

Binding = tuple[str, str]  # (colour, shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    """One thing in the picture.

    Attributes:
        colour, shape, size, texture: words of the vocabulary.
        x, y: centre of the bounding box, fractions of the picture (y down).
        radius: half of the bounding box's longer side, fraction of the picture.
    """

    colour: str
    shape: str
    size: str = v.DEFAULT_SIZE
    texture: str = v.DEFAULT_TEXTURE
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.25

    def __post_init__(self) -> None:
        v.check(self.colour, v.COLOURS, "colour")
        v.check(self.shape, v.SHAPES, "shape")
        v.check(self.size, v.SIZES, "size")
        v.check(self.texture, v.TEXTURES, "texture")

    @property
    def binding(self) -> Binding:
        """(colour, shape), what a caption must not mix up."""
        return self.colour, self.shape

    @property
    def look(self) -> tuple[str, str, str, str]:
        """Everything a caption can say of the object apart from its place."""
        return self.size, self.texture, self.colour, self.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture's content.

    Attributes:
        objects: 1 to 4 objects, painted in reverse order (``objects[0]`` is on top).
        relation: "" or the relation in which ``objects[0]`` stands to ``objects[1]``.
        background: its colour's name; the top colour if there is a gradient.
        gradient_to: "" or the name of the colour at the bottom.
        style: one of the visual styles.
        named_style: whether captions name the style; if not, only a picture tells it.
    """

    objects: tuple[Object, ...]
    relation: str = ""
    background: str = v.DEFAULT_BACKGROUND
    gradient_to: str = ""
    style: str = v.DEFAULT_STYLE
    named_style: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= 4:
            raise v.SceneError(f"a scene has 1 to 4 objects, got {len(self.objects)}")
        if self.relation:
            v.check(self.relation, v.RELATIONS, "relation")
            if len(self.objects) != 2:
                raise v.SceneError(f"a relation needs 2 objects, got {len(self.objects)}")
        v.check(self.background, v.BACKGROUNDS, "background")
        if self.gradient_to:
            v.check(self.gradient_to, v.BACKGROUNDS, "background")
        v.check(self.style, v.STYLES, "style")

    @property
    def kind(self) -> str:
        """``"relation"``, ``"single"``, ``"count"`` (all objects alike) or ``"mixed"``."""
        if self.relation:
            return "relation"
        if len(self.objects) == 1:
            return "single"
        return "count" if len({o.look for o in self.objects}) == 1 else "mixed"

    def to_json(self) -> str:
        """A compact JSON text; `from_json` gives back an equal scene."""
        rows = [[*o.look, o.x, o.y, o.radius] for o in self.objects]
        fields = [rows, self.relation, self.background, self.gradient_to, self.style]
        fields += [] if self.named_style else ["unnamed"]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Reads what `to_json` wrote; raises `SceneError` for anything else."""
        try:
            rows, relation, background, gradient_to, style, *unnamed = json.loads(text)
            if unnamed not in ([], ["unnamed"]):
                raise ValueError(f"{unnamed} after the style")
            names = ("size", "texture", "colour", "shape", "x", "y", "radius")
            objects = tuple(Object(**dict(zip(names, row, strict=True))) for row in rows)
        except (ValueError, TypeError) as error:
            raise v.SceneError(f"not a scene's JSON: {text[:80]!r} ({error})") from error
        return cls(
            objects=objects,
            relation=relation,
            background=background,
            gradient_to=gradient_to,
            style=style,
            named_style=not unnamed,
        )
