"""The claim about cross-attention: its numbers follow from the shares, and the whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ediffi_jax.reproduction import attention
from ediffi_jax.reproduction.claim import CONTRADICTED, REPRODUCED
from ediffi_jax.reproduction.study import Study


def _study(folder: Path, seeds: tuple[int, ...]) -> Study:
    return Study(folder=folder, shared=folder, budget="seconds", seeds=seeds, say=lambda line: None)


def _row(null: float) -> attention.Row:
    """A fifth on CLIP, the rest on T5; two layers, one of which has all of the null token's share."""
    return {
        "shares": {"clip_text": 0.2, "t5": 0.8 - null, "clip_image": 0.0, "null": null},
        "null": {"down1_0": [2 * null, 2 * null], "middle1": [0.0, 0.0]},
    }


@pytest.mark.parametrize(
    ("nulls", "verdict"), [((0.7, 0.5, 0.3, 0.1), REPRODUCED), ((0.1, 0.2, 0.3, 0.4), CONTRADICTED)]
)
def test_findings_are_differences_of_quarters(
    nulls: tuple[float, ...], verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(cascade: object, seed: int, *rest: object) -> dict:
        curve = [_row(null + 0.001 * seed) for null in nulls]
        return {"curve": curve, "cuts": [curve[:2], curve[2:]], "ends": [curve[0], curve[-1]], "even": 0.05}

    monkeypatch.setattr(attention, "_measure", measured)
    result = attention.run(_study(tmp_path, (0, 1, 2)))
    assert result.verdict == verdict
    gain, low, high = (finding.values for finding in result.findings[:3])
    np.testing.assert_allclose(gain, nulls[0] - nulls[-1], atol=1e-9)
    np.testing.assert_allclose(low, nulls[0] + 0.001 * np.arange(3))
    np.testing.assert_allclose(high, nulls[-1] + 0.001 * np.arange(3))
    jumps = [finding.mean for finding in result.findings if "cut" in finding.what]
    np.testing.assert_allclose(jumps, [nulls[0] - nulls[1], nulls[2] - nulls[3]])
    assert [row[0] for row in result.tables[0].rows] == ["down1_0", "middle1"]
    sides = {f.what: f.mean for f in result.findings if "layers of" in f.what}
    assert sides["null token in layers of 8×8, low noise"] == pytest.approx(2 * nulls[0] + 0.002)
    assert sides["null token in layers of 4×4, high noise"] == 0
    assert (tmp_path / result.pictures[0].file).exists()


@pytest.mark.pod
def test_the_bundled_base_is_measured(tmp_path: Path) -> None:
    study = _study(tmp_path, (7,))
    result = attention.run(study)
    part = study.remembered("seed7/both", dict, pictures=4, levels=4)
    alone = study.remembered("seed7/T5_alone", dict, pictures=4, levels=4)
    for row in (*part["curve"], *part["ends"], *part["cuts"][0]):
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert np.mean(list(map(np.mean, row["null"].values()))) == pytest.approx(row["shares"]["null"], abs=1e-5)
    assert all(row["shares"]["clip_text"] == 0 for row in alone["curve"])
    assert result.findings[0].mean > 0
