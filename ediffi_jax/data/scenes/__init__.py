"""The embedded data set: pictures drawn from exact descriptions, with captions and ground truth.

    vocabulary  the words and what they stand for
    scene       Scene, Object: the description, as JSON too
    sampling    drawing scenes;  heldout: the combinations that training never sees
    shapes, rendering, styles   scene -> picture, at any resolution
    captions    scene -> text, with the owner of every word
    segmentation, scoring     picture -> what is in it, and whether that is what was asked for
    unstyle, redrawing        how pictures of the other styles than flat are read
    builder     the data set as ArrayRecord files (not imported here: it needs tensorflow_datasets)
"""

from ediffi_jax.data.scenes.captions import canonical, caption, caption_with_owners
from ediffi_jax.data.scenes.heldout import held_out
from ediffi_jax.data.scenes.rendering import render
from ediffi_jax.data.scenes.sampling import heldout_prompts, sample_scene
from ediffi_jax.data.scenes.scene import Object, Scene
from ediffi_jax.data.scenes.scoring import Score, Seen, read, score
from ediffi_jax.data.scenes.vocabulary import SceneError

__all__ = [
    "Object",
    "Scene",
    "SceneError",
    "Score",
    "Seen",
    "canonical",
    "caption",
    "caption_with_owners",
    "held_out",
    "heldout_prompts",
    "read",
    "render",
    "sample_scene",
    "score",
]
