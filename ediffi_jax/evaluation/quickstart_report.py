"""The quick start's report: samples, loss against noise level, what was run and how long it took."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ediffi_jax.data.scenes import heldout_prompts
from ediffi_jax.evaluation.quantile_loss import QuantileLoss, compare
from ediffi_jax.evaluation.report import Report, loss_figure
from ediffi_jax.evaluation.scenes_accuracy import accuracy
from ediffi_jax.evaluation.steps import Step, finished
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import LogNormal
from ediffi_jax.training import config_files

BINS = 16
NAMES = {"single": "single model", "experts": "three experts", "base": "before branching"}


def write(folder: Path, steps: Sequence[Step]) -> None:
    """Writes report.html, samples.png and loss.png into the quick start's folder."""
    report = Report(title="ediffi_jax: quick start")
    report.text(
        "An ensemble of expert denoisers, trained from nothing on a CPU in minutes. It stops far short of"
        " convergence: the pictures show that the method works, not how good it gets."
    )
    _samples(report, folder)
    _losses(report, folder)
    _choices(report, folder)
    _steps(report, folder, steps)
    report.write(folder / "report.html")


def _samples(report: Report, folder: Path) -> None:
    prompts = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    images = [np.asarray(Image.open(path)) for path in sorted((folder / "samples").glob("[0-9]*.png"))]
    report.heading("Samples")
    report.text(
        "One picture per prompt, seed 0, none chosen by hand. Every prompt combines two objects that never appear"
        " together in training."
    )
    report.pictures(images, prompts)
    scenes = dict(heldout_prompts(len(prompts)))
    found = accuracy(np.stack(images), [scenes[prompt] for prompt in prompts])
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    report.text(f"Read back by the exact scorer, share of the {found.number} pictures that are right: {shares}.")


def _losses(report: Report, folder: Path) -> None:
    stored = np.load(folder / "comparison.npz")
    losses = {name: QuantileLoss(quantiles=stored["quantiles"], losses=stored[name]) for name in NAMES}
    ensemble = _ensemble(folder)
    images = {name: _images(folder / name) for name in NAMES}
    report.heading("Single model and ensemble at equal training images")
    report.text(
        f"Both start from the base model of {images['base']:,} images. Then the three experts were trained on"
        f" {images['experts'] - images['base']:,} images together, and the single model on"
        f" {images['single'] - images['base']:,}. A sample costs the same with either."
        f" Measured on {stored['single'].shape[1]} held-out pictures with the same noise for all, EMA weights."
    )
    marks = sorted({0.05, 0.5, 0.95, *ensemble.cuts})
    sigmas = {q: float(ensemble.noise.quantile(jnp.float32(q))) for q in marks}
    curves = {NAMES[name]: loss.curve(BINS) for name, loss in losses.items()}
    figure = loss_figure(curves, cuts=ensemble.cuts, sigma_at=sigmas)
    report.figure(figure, path=folder / "loss.png", alt="Held-out loss against the quantile of the noise level")
    rows = [
        (f"{c.low:g} to {c.high:g}", c.first, c.second, f"{100 * c.change:+.2f} ± {100 * c.error:.2f}")
        for c in compare(losses["single"], losses["experts"], ensemble)
    ]
    report.table(("quantiles", "single model", "its expert", "change, % (± standard error over pictures)"), rows)
    report.text(
        "Experts pay once capacity is the limit. The paper branches after 500,000 steps of batch 2048; while the loss"
        " still falls as quickly as it does here, sharing every image among all noise levels can win. One run, one"
        " seed: this shows how the comparison is made and what it is worth at this size, whichever way it falls."
    )


def _choices(report: Report, folder: Path) -> None:
    ensemble = _ensemble(folder)
    low, high = ensemble.cuts
    at_low, at_high = (float(sigma) for sigma in ensemble.cut_sigmas)
    report.heading("Why these cuts")
    report.text(
        f"The experts meet at the quantiles {low:g} and {high:g} of p(sigma), that is at sigma = {at_low:.2f} and"
        f" {at_high:.2f}. The paper's outermost expert owns the top 1/512 of the noise levels of 64x64 pictures. A 16x16"
        " picture averages away four times less noise (one pixel stands for 16), so the levels at which only the text"
        " can decide the layout begin at a sigma about four times lower; with ln sigma ~ N(-0.5, 1.2²) they are about"
        " the top quarter, and a share of 1/512 would be almost empty. The bottom eighth is the paper's: there only"
        " edges are still to be made, and the text hardly matters."
    )


def _steps(report: Report, folder: Path, steps: Sequence[Step]) -> None:
    commands = {step.name: step.command_line for step in steps}
    records = finished(folder, steps)
    report.heading("What was run")
    rows = [(r.title, f"{r.seconds:.0f}", _trained(folder, r.name), commands[r.name]) for r in records]
    report.table(("step", "seconds", "images trained", "command"), rows)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax", "numpy"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.text(
        f"In all {sum(r.seconds for r in records) / 60:.1f} minutes on {cores} CPU cores ({platform.machine()}),"
        f" Python {platform.python_version()}, {versions}."
    )


def _ensemble(folder: Path) -> Ensemble:
    config = config_files.read_workdir(folder / "experts")
    return Ensemble(cuts=tuple(config.phases[-1]["cuts"]), noise=LogNormal(**config.noise))


def _trained(folder: Path, name: str) -> str:
    """Images a training step consumed by itself, "" for other steps."""
    if not (folder / name / "metrics.jsonl").exists():
        return ""
    before = _images(folder / "base") if name in ("experts", "single") else 0
    return f"{_images(folder / name) - before:,}"


def _images(workdir: Path) -> int:
    """Images a run has consumed in all, from its last line of metrics that says so."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return max(int(row["images"]) for row in rows if "images" in row)
