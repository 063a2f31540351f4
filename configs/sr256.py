"""The paper's first super-resolution model, 64 -> 256, as one model for all noise levels (eDiff-I, table 3).

    python -m launch.train --config=configs/sr256.py --workdir=runs/sr256 \\
        --config.data.name=data/pairs --config.encoders=encoders --config.data.embeddings=data/embeddings

Pictures need 256 pixels or more on the shorter side. The three folders are those of configs/base64.py, the
embeddings too; `--config=configs/sr256.py:synthetic` needs none.

Hardware: the paper's is 128 A100. Hours: 501 on a v5p-128 (32 045 chip-hours), 292 on a v5litepod-256 (74 663),
if 40 % of the peak is reached; nobody has run this recipe here, nor are the paper's hours known. By the planner:

    python -m launch.plan --config=configs/sr256.py --topology=v5p-128 --embeddings=precomputed

Parameters: 445 653 763 (docs/experts.md compares with the paper).
Expected result: part of the paper's Config A, zero-shot COCO FID-30K 7.35; with two experts (configs/ediffi_b.py) 7.26.
Choices where the paper is silent: configs/_paper.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import _paper


def get_config(arguments: str = "") -> ConfigDict:
    """The recipe; the switch ``synthetic`` is for a try without data."""
    return _paper.single("sr256", arguments)
