"""The measure of paint-with-words: rendered pictures whose objects are known to be where they should, or elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.heldout import pair_held_out
from ediffi_jax.evaluation.paint_control import LAYOUTS, Case, make_cases, measure
from ediffi_jax.paint import box, spans

CASES = make_cases(24, seed=1)


def drawn(
    case: Case, swapped: bool = False, shapes: tuple[str, ...] = (), also: tuple[scenes.Object, ...] = ()
) -> np.ndarray:
    """The picture that a perfect painter makes of the case."""
    boxes = case.boxes[::-1] if swapped else case.boxes
    things = [
        scenes.Object(colour=colour, shape=(shapes or (shape,) * 2)[i], x=(x0 + x1) / 2, y=(y0 + y1) / 2, radius=0.13)
        for i, ((colour, shape), (x0, y0, x1, y1)) in enumerate(zip(case.bindings, boxes))
    ]
    return scenes.render(scenes.Scene(objects=(*things, *also)), 128)


def test_cases_are_two_known_objects_in_places_apart() -> None:
    assert CASES == make_cases(24, seed=1) and CASES != make_cases(24, seed=2)
    assert [case.layout for case in CASES[:3]] == list(LAYOUTS)
    for case in CASES:
        assert case.bindings[0] != case.bindings[1] and not set(case.bindings) & v.HELD_OUT_BINDINGS
        first, second = (box(*edges) for edges in case.boxes)
        assert not (first * second).any() and min(first.sum(), second.sum()) > 0.15 * first.size
        for phrase in case.paint():
            assert spans.find(case.prompt, phrase)
    assert all(pair_held_out(*case.bindings) for case in make_cases(6, held_out=True))
    assert make_cases(1, template="there are two shapes, {a} and {b}")[0].prompt.startswith("there are two shapes, a")


def test_objects_in_their_places_are_inside_and_swapped_ones_are_not() -> None:
    there = measure(np.stack([drawn(case) for case in CASES]), CASES)
    assert there.inside == there.right == there.inside_right == there.whole == 1 and there.number == 24
    assert there.inside_by_layout == dict.fromkeys(LAYOUTS, 1.0)
    swapped = measure(np.stack([drawn(case, swapped=True) for case in CASES]), CASES)
    assert swapped.inside == 0 and swapped.right == 1 and swapped.whole == 1
    nothing = measure(np.full((24, 64, 64, 3), 132, np.uint8), CASES)
    assert nothing.inside == nothing.right == nothing.whole == 0


@pytest.mark.parametrize("place", [(0.8, 0.2), (0.2, 0.2)])
def test_a_wrong_shape_is_still_inside_and_a_third_object_spoils_the_whole(place: tuple[float, float]) -> None:
    case = Case(
        prompt="a red circle and a blue square",
        bindings=(("red", "circle"), ("blue", "square")),
        boxes=((0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)),
        layout="quarters",
    )
    crossed = measure(drawn(case, shapes=("cross", "square"))[None], [case])
    assert (crossed.inside, crossed.right, crossed.inside_right, crossed.whole) == (1, 0.5, 0.5, 0)
    third = scenes.Object(colour="green", shape="heart", x=place[0], y=place[1], radius=0.13)
    three = measure(drawn(case, also=(third,))[None], [case])
    assert (three.inside, three.right, three.whole) == (1, 1, 0)
    assert "inside 100.0  right 100.0" in three.row()
