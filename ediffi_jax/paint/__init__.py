"""Paint-with-words: phrases of the prompt put where a user paints them (eDiff-I, section 4.3).

    regions    box, left, right, top, bottom: masks made in code
    canvas     from_canvas: one colour-coded picture and its legend
    masks      masks from files, pictures and arrays
    spans      a phrase in the prompt
    phrases    the phrases of a prompt that one would paint
    painting   phrases and masks -> A and w' for the network
    flags      --paint, --canvas and --legend
"""

from ediffi_jax.paint.canvas import from_canvas
from ediffi_jax.paint.errors import PaintError
from ediffi_jax.paint.flags import parse
from ediffi_jax.paint.painting import PAINT_WEIGHT, Painting, Plan, Stroke, make_plan
from ediffi_jax.paint.phrases import phrases
from ediffi_jax.paint.regions import bottom, box, left, right, top

__all__ = [
    "PAINT_WEIGHT",
    "PaintError",
    "Painting",
    "Plan",
    "Stroke",
    "bottom",
    "box",
    "from_canvas",
    "left",
    "make_plan",
    "parse",
    "phrases",
    "right",
    "top",
]
