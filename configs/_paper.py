"""What the recipes of the paper's models share: eDiff-I (arXiv 2211.01324), Sec. 4 to 6, tables 2 to 4 and 7.

From the paper: channels, multipliers, blocks, attention resolutions, scale-shift norm, p(sigma) = log-normal
(-1.2, 1.2) with sigma_data 0.5, drop rates, AdamW (1e-4, weight decay 0.01, betas 0.9 and 0.999), batch 2048, EMA
0.9999, recomputation in the backward pass, samplers (DEIS 3-kutta, 25 steps and exponent 6 for the base, 10 and 3 for
super-resolution), crops of 256 for SR1024, iterations in sum.

Where it says nothing that we could find, we chose:
- batch 2048 *per expert*. The paper trains experts one by one, and counts the samples of an ensemble as iterations
  of every expert added up, so each had the batch of the table.
- context width 1024: the three encoders' common width is unknown. Imagen's open relative in NeMo has 512 beside 0.5 B
  parameters and 2048 beside 2 B.
- 64 channels a head and no dropout, as in ADM and in NeMo; all parameters float32, products bfloat16 where there is
  hardware for it.
- warm-up over 10 000 steps, none after branching (an expert goes on with its parent's moments and step count), then
  a constant rate; gradients clipped at norm 1: as in Imagen and NeMo.
- p(sigma) of super-resolution is the base's: no other values are known, and NeMo does the same.
- the low-resolution picture gets Gaussian noise of U(0, 0.3) in training and 0.03 in sampling, a level that the
  network is told, as in `configs/scenes.py`.
- before that noise it is degraded as the paper says, after Real-ESRGAN, whose published parameters we take
  (`data.degrade=full`), as the paper's are unknown; one picture in ten stays clean. `data.degrade=cascade` is milder.
- SR1024 samples like SR256: its own settings are unknown.
- guidance 2 with dynamic thresholds for the base (the weight behind the paper's figures is unknown; unthresholded,
  guidance saturates colours), none for super-resolution, where the picture to be enlarged says what to draw and
  guidance would double the price.
- stored pictures of at least 256 pixels also for the base. The paper keeps whatever is over 64; but CLIP looks at
  224, and one folder of embeddings then serves base and SR256. `--config.data.source_resolution=64` is the paper's.
- the mesh: as many groups of devices as divide both experts and devices, the parameters of a group's experts in
  equal parts over all its devices.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from ediffi_jax.training import config as training_config
from ediffi_jax.training.config_files import parse_arguments

from . import _tree

STAGES = ("base", "sr256", "sr1024")
# Of the base and of SR256 in each of the paper's configurations; SR1024 is one model in all of them.
CONFIGURATIONS = {
    "a": (_tree.BASE_SINGLE, _tree.SR256_SINGLE),
    "b": (_tree.BASE_SINGLE, _tree.SR256_TWO),
    "c": (_tree.BASE_C, _tree.SR256_TWO),
    "d": (_tree.BASE_D, _tree.SR256_TWO),
}


def single(stage: str, arguments: str) -> ConfigDict:
    """One model for all noise levels. Arguments: the switch ``synthetic``."""
    chosen = parse_arguments(arguments, synthetic=False)
    return _recipe(stage, tree("a", stage).phases(), **chosen)


def configuration(letter: str, arguments: str) -> ConfigDict:
    """A stage of Config A to D.

    Arguments: ``stage=base|sr256|sr1024``, ``run=all|shared|low|middle|high`` (see `_tree`), the switch ``synthetic``.
    """
    chosen = parse_arguments(arguments, stage=STAGES, run=_tree.RUNS, synthetic=False)
    phases = tree(letter, chosen["stage"]).phases(chosen["run"])
    return _recipe(chosen["stage"], phases, synthetic=chosen["synthetic"])


def tree(letter: str, stage: str) -> _tree.Tree:
    """The experts of a stage in Config A to D."""
    return (*CONFIGURATIONS[letter], _tree.SR1024_SINGLE)[STAGES.index(stage)]


def _recipe(stage: str, phases: _tree.Phases, *, synthetic: bool) -> ConfigDict:
    config = training_config.default()
    config.stage = stage
    config.phases = phases
    config.batch_size = 2048
    config.encoders = "encoders"  # see docs/weights.md
    config.data.update({"name": "", "clip_resolution": 224, "workers": 16})
    config.optimizer.update({"lr": 1e-4, "warmup": 10_000, "weight_decay": 0.01, "b1": 0.9, "b2": 0.999, "clip": 1.0})
    config.ema.decay = 0.9999
    config.mesh.update({"expert": -1, "data": 1, "fsdp": -1})
    # One held-out batch: at this size it is 2048 pictures, two gigabytes with prepared embeddings.
    config.eval_batches = 1
    config.update({"log_every": 100, "eval_every": 10_000, "save_every": 2_000, "sample_every": 10_000})
    {"base": _base, "sr256": _sr256, "sr1024": _sr1024}[stage](config)
    if synthetic:
        _synthetic(config)
    return config


def _base(config: ConfigDict) -> None:
    """Table 2: the U-Net of ADM, 64x64 from text."""
    config.model = ConfigDict(
        {
            "name": "unet",
            "resolution": 64,
            "channels": 256,
            "channel_mults": (1, 2, 4, 4),
            "blocks": 3,
            "attention_resolutions": (32, 16, 8),
            "cross_attention_resolutions": (32, 16, 8),
            **_common(),
        }
    )
    config.data.update({"resolution": 64, "source_resolution": 256})
    config.sampler.update({"steps": 25, "exponent": 6.0, "guidance": 2.0, "threshold": "dynamic"})


def _sr256(config: ConfigDict) -> None:
    """Table 3: the Efficient U-Net of Imagen, 64 -> 256."""
    config.model = ConfigDict(
        {
            "name": "efficient_unet",
            "resolution": 256,
            "channels": 128,
            "channel_mults": (1, 2, 4, 8),
            "blocks": 2,
            "block_mults": (1, 2, 4, 4),
            "attention_resolutions": (32,),
            "cross_attention_resolutions": (32,),
            "low_res": True,
            "noise_aug": True,
            **_common(),
        }
    )
    config.data.update({"resolution": 256, "low_resolution": 64, "source_resolution": 256})
    config.data.update({"degrade": "full", "degrade_clean": 0.1})
    config.aug.update({"max_level": 0.3, "level": 0.03})
    config.sampler.update({"steps": 10, "exponent": 3.0, "guidance": 0.0})


def _sr1024(config: ConfigDict) -> None:
    """Table 4: 256 -> 1024, trained on crops of 256. No self-attention: at 1024 it would have 16384 queries."""
    _sr256(config)
    config.model.update({"channel_mults": (1, 2, 4, 4), "attention_resolutions": ()})
    config.data.update({"resolution": 1024, "low_resolution": 256, "crop": 256, "source_resolution": 1024})


def _common() -> dict[str, Any]:
    return {"head_channels": 64, "context_width": 1024, "dropout": 0.0, "remat": True}


def _synthetic(config: ConfigDict) -> None:
    """Random pictures and no encoders: nothing to download, to try memory and speed of the real network.

    The context then has 4 tokens of width 1 for 192 of up to 4096, which is all that differs from the real step.
    """
    config.encoders = ""
    config.data.name = "synthetic"
    config.data.clip_resolution = 0
