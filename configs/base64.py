"""The paper's base model, 64x64 from text, as one model for all noise levels (eDiff-I, table 2).

    python -m launch.train --config=configs/base64.py --workdir=runs/base64 \\
        --config.data.name=data/pairs --config.encoders=encoders --config.data.embeddings=data/embeddings

`data/pairs` is a prepared TFDS data set with `image` and `caption`, `encoders` holds T5-XXL and CLIP ViT-L/14
(docs/weights.md), `data/embeddings` is what `launch.encode` made of both (docs/embeddings.md; without it the encoders
run in every step). With `--config=configs/base64.py:synthetic` it needs none of the three.

Hardware: the paper's is 256 A100. Hours: 128 on a v5p-128 (8 221 chip-hours), 75 on a v5litepod-256 (19 155),
if 40 % of the peak is reached; nobody has run this recipe here, nor are the paper's hours known. By the planner:

    python -m launch.plan --config=configs/base64.py --topology=v5p-128 --embeddings=precomputed

Parameters: 715 496 707 (docs/experts.md compares with the paper).
Expected result: with SR256 as one model this is Config A, whose zero-shot COCO FID-30K in the paper is 7.35.
Choices where the paper is silent: configs/_paper.py. With experts: configs/ediffi_c.py, configs/ediffi_d.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import _paper


def get_config(arguments: str = "") -> ConfigDict:
    """The recipe; the switch ``synthetic`` is for a try without data."""
    return _paper.single("base", arguments)
