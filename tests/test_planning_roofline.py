"""The roofline of a step, against arithmetic on the vendor's figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ediffi_jax.planning.chips import CHIPS
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.roofline import PARTS, bound

AMOUNT = st.just(0.0) | st.floats(1, 1e18)  # operations and bytes: none, or at least one


@pytest.mark.parametrize(
    ("amounts", "part", "seconds"),
    [
        ((197e12, 819e6, 200e6, 1e6), "compute", 1.0),
        ((197e9, 2 * 819e9, 0, 0), "memory", 2.0),
        ((197e9, 0, 3 * 200e9, 0), "ici", 3.0),  # 400 GB/s in both directions are 200 to send
        ((197e9, 0, 0, 25e9 / 8), "dcn", 1.0),  # 200 Gbit/s of a host over its 8 chips
    ],
)
def test_a_v5e_by_hand(amounts, part, seconds) -> None:
    found = bound(*amounts, CHIPS["v5e"])
    assert found.limited_by == part
    assert found.seconds == pytest.approx(seconds)
    assert getattr(found, f"{part}_seconds") == found.seconds
    assert found.mfu(amounts[0]) == pytest.approx(amounts[0] / (197e12 * seconds))


@given(amounts=st.tuples(AMOUNT, AMOUNT, AMOUNT, AMOUNT), chip=st.sampled_from(list(CHIPS.values())))
def test_no_part_takes_longer_than_the_step(amounts, chip) -> None:
    if not max(amounts):
        return
    found = bound(*amounts, chip)
    assert found.seconds == max(getattr(found, f"{part}_seconds") for part in PARTS) > 0
    assert 0 <= found.mfu(amounts[0]) <= 1 + 1e-9  # what is executed never beats the peak
    more = bound(amounts[0], amounts[1], amounts[2], amounts[3] + 1, chip)
    assert more.seconds >= found.seconds


def test_nothing_and_less_than_nothing_are_refused() -> None:
    for amounts in [(0, 0, 0, 0), (1, -1, 0, 0)]:
        with pytest.raises(PlanError, match="expected none below 0"):
            bound(*amounts, CHIPS["v5p"])
