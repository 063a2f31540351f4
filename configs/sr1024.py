"""The paper's second super-resolution model, 256 -> 1024, trained on crops of 256x256 (eDiff-I, table 4).

    python -m launch.train --config=configs/sr1024.py --workdir=runs/sr1024 \\
        --config.data.name=data/large --config.encoders=encoders --config.data.embeddings=data/large_embeddings

Pictures need 1024 pixels or more on the shorter side, so both folders differ from those of configs/base64.py.
`--config=configs/sr1024.py:synthetic` needs none. A crop of 256 is enlarged from 64; the network is convolutional but
for its cross-attention, and sampling runs it on whole pictures, 256 -> 1024.

Hardware: the paper's is 128 A100. Hours: 306 on a v5p-128 (19 608 chip-hours), 178 on a v5litepod-256 (45 685),
if 40 % of the peak is reached; nobody has run this recipe here, nor are the paper's hours known. By the planner:

    python -m launch.plan --config=configs/sr1024.py --topology=v5p-128 --embeddings=precomputed

Parameters: 194 959 619 (the paper's number is not known to us).
Expected result: sharper pictures; the paper measures at 256.
Choices where the paper is silent: configs/_paper.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import _paper


def get_config(arguments: str = "") -> ConfigDict:
    """The recipe; the switch ``synthetic`` is for a try without data."""
    return _paper.single("sr1024", arguments)
