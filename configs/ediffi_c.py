"""The paper's Config C: two experts for the base, E^9_511 and all other noise levels; SR256 as in Config B.

    python -m launch.train --config=configs/ediffi_c.py:stage=base --workdir=runs/c/base \\
        --config.data.name=data/pairs --config.encoders=encoders --config.data.embeddings=data/embeddings

and the same with `stage=sr256`, and with `stage=sr1024` on data of its own (configs/sr1024.py).
One expert a run, each on its own hardware: `run=low` and `run=high` (docs/experts.md).

Hardware: the paper's is 256 A100 for the base, 128 for each super-resolution model. Hours: base 128, SR256 501, SR1024
306 on a v5p-128 (8 221, 32 045 and 19 608 chip-hours; every configuration trains on as many images), if 40 % of the peak
is reached. Nobody has run this recipe here, nor are the paper's hours known. By the planner, for each stage:

    python -m launch.plan --config=configs/ediffi_c.py:stage=base --topology=v5p-128 --embeddings=precomputed

Expected result: the paper's zero-shot COCO FID-30K at 256x256 is 7.11.
Tables of phases, cuts, parents and parameters: docs/experts.md. Choices where the paper is silent: configs/_paper.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import _paper


def get_config(arguments: str = "") -> ConfigDict:
    """The recipe of one stage. Arguments: ``stage=base|sr256|sr1024``, ``run=all|shared|low|high``, ``synthetic``."""
    return _paper.configuration("c", arguments)
