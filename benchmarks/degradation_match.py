"""Do the degradations of super-resolution's training look like what a base model draws?

    python -m benchmarks.degradation_match --number=192 --out=DIR

Held-out scenes are rendered at the base's resolution, and drawn by the base from their captions. Two comparisons:

- spectrum and grain: mean power by spatial frequency relative to the renders', percentiles of |second difference|;
- errors, where each picture has its truth: the base draws anew a render that noise of `--sigma` was added to, so
  that the scene stays and the strokes are its own: gain and residual of `evaluation/spectra.py`.

Degraded renders are measured alike. Prints the table; writes OUT/degradation_match.json, OUT/degradation_match.png
(a plot), OUT/sheet.png, and OUT/pictures.npz, which --reuse reads instead of drawing again.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from ediffi_jax.evaluation.spectra import BANDS, CURVE, GRAIN, Pictures, describe

FLAGS = flags.FLAGS
CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or workdir of a base.")
NUMBER = flags.DEFINE_integer("number", 192, "Scenes.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Of the scenes, the pictures and the degradations.")
SIGMA = flags.DEFINE_list("sigma", ["0.5", "1"], "Noise from which renders are drawn anew; data lie in [-1, 1].")
STEPS = flags.DEFINE_integer("steps", 8, "Solver steps of drawing anew.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures at a time.", lower_bound=1)
REUSE = flags.DEFINE_bool("reuse", False, "Take the pictures that OUT holds.")
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)

COLUMNS = 12  # of the sheet


def draw() -> dict[str, Pictures]:
    """Renders at four times the base's side and at its own; the base's pictures of their captions and drawings anew."""
    import jax
    import jax.numpy as jnp

    import ediffi_jax as ed
    from ediffi_jax import samplers
    from ediffi_jax.cascade import to_uint8
    from ediffi_jax.data import scenes
    from ediffi_jax.data.views import shrink

    cascade = ed.load(CASCADE.value)
    base = dataclasses.replace(cascade, stages=cascade.stages[:1])
    stage, rng = base.stages[0], np.random.default_rng((SEED.value, 0xDE6))
    found = [dataclasses.replace(scenes.sample_scene(rng), named_style=True) for _ in range(NUMBER.value)]
    prompts = [scenes.caption(scene, rng) for scene in found]
    side = stage.spec.resolution
    high = np.stack([scenes.render(scene, 4 * side) for scene in found])
    renders = np.stack([shrink(picture, side) for picture in high])
    made = {
        "high": high,
        "renders": renders,
        "base": base.sample(prompts, seed=SEED.value, batch_size=BATCH_SIZE.value),
    }

    @jax.jit
    def anew(x0: jax.Array, sigmas: jax.Array, keys: jax.Array, cond: Any) -> jax.Array:
        noise = x0 / sigmas[0] + jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys)
        denoise = stage.denoise_fn(cond, guidance=stage.spec.sampler.guidance)
        return samplers.get("heun")(denoise, noise, sigmas, keys)

    keys = jax.random.split(jax.random.key(SEED.value), len(prompts))
    for text in SIGMA.value:
        sigmas = jnp.append(jnp.geomspace(float(text), 0.02, STEPS.value), 0.0)
        rows = []
        for start in range(0, len(prompts), BATCH_SIZE.value):
            part = slice(start, start + BATCH_SIZE.value)
            cond = base.encoders.encode(prompts[part])
            x0 = jnp.asarray(renders[part], jnp.float32) / 127.5 - 1
            rows.append(to_uint8(np.asarray(anew(x0, sigmas, keys[part], cond))))
        made[f"base from sigma {text}"] = np.concatenate(rows)
    return made


def table(rows: dict[str, dict[str, Any]]) -> str:
    """All figures, one line a kind of picture."""
    bands = " ".join(f"{low:.2f}-{high:.2f}" for low, high in zip(BANDS[:-1], BANDS[1:], strict=True))
    lines = [f"bands of frequency (1 = highest along an axis): {bands}"]
    for name, row in rows.items():
        cells = [
            f"{key} " + " ".join(f"{x:6.3f}" for x in row[key]) for key in ("power", "gain", "residual") if key in row
        ]
        cells += [" ".join(f"{key} {row[key]:5.2f}" for key in (*(f"grain_{g}" for g in GRAIN), "rmse") if key in row)]
        cells += ["bias " + " ".join(f"{x:+.2f}" for x in row["bias"])] if "bias" in row else []
        lines.append(f"{name:20} " + "  ".join(cells))
    return "\n".join(lines)


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Power by frequency, relative to the renders'."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    frequency = (CURVE[:-1] + CURVE[1:]) / 2
    for name, row in rows.items():
        axes.plot(frequency, row["curve"], label=name, linewidth=2.5 if name.startswith("base") else 1.2)
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set(xlabel="spatial frequency (1: highest along an axis)", ylabel="power / power of renders", yscale="log")
    axes.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str]) -> None:
    """Draws or reads the pictures, measures, prints and writes."""
    del argv
    from ediffi_jax import pictures
    from ediffi_jax.data.degrade import PRESETS, degrade

    out = pictures.make_folder(OUT.value)
    store = out / "pictures.npz"
    made = dict(np.load(store)) if REUSE.value and store.exists() else draw()
    np.savez_compressed(store, **made)
    high, renders = made.pop("high"), made.pop("renders")
    side = renders.shape[1]
    rows = {name: describe(drawn, renders, paired="sigma" in name) for name, drawn in made.items()}
    degraded = {}
    for name, preset in PRESETS.items():
        draws = [np.random.default_rng((SEED.value, index)) for index in range(len(high))]
        degraded[name] = np.stack([degrade(preset, high[i], side, side, rng) for i, rng in enumerate(draws)])
        rows[name] = describe(degraded[name], renders, paired=True)
    settings = {name: FLAGS[name].value for name in ("cascade", "number", "seed", "sigma", "steps")}
    print(table(rows))
    (out / "degradation_match.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    plot(rows, out / "degradation_match.png")
    shown = [renders[:COLUMNS], *(drawn[:COLUMNS] for drawn in [*made.values(), *degraded.values()])]
    enlarged = [picture.repeat(6, axis=0).repeat(6, axis=1) for row in shown for picture in row]
    captions = [name for name, row in zip(["renders", *rows], shown, strict=True) for _ in row]
    pictures.write_png(out / "sheet.png", pictures.contact_sheet(enlarged, captions, columns=len(shown[0])))


if __name__ == "__main__":
    app.run(main)
