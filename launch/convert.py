"""Turns published pickled weights (.bin, .pth, .pt) into safetensors, once; needs the extra [convert] (PyTorch).

  python -m launch.convert --input=downloads/t5-v1_1-xxl --output=encoders/t5 --encoder_only --dtype=bfloat16
  python -m launch.convert --input=downloads/clip/pytorch_model.bin --output=encoders/clip

config.json and the tokenizer files beside the weights are copied along. Only tensors are unpickled: a file that
needs more is refused. The folder appears once it is complete. docs/weights.md lists the published encoders.
"""

from __future__ import annotations

from absl import flags

from ._main import refuse_overrides, run

INPUT = flags.DEFINE_string("input", None, "Pickled file, or a folder with one or with its shards.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to make; must not exist.", required=True)
MAX_SHARD_GB = flags.DEFINE_float("max_shard_gb", 5.0, "Gigabytes (1e9 bytes) a file.")
DTYPE = flags.DEFINE_string("dtype", "keep", "Store floating point as keep, float32, float16 or bfloat16.")
ENCODER_ONLY = flags.DEFINE_bool("encoder_only", False, "Leave out T5's decoder, which text encoding does not need.")


def main(overrides: list[str]) -> None:
    """Converts and says where."""
    refuse_overrides(overrides)
    from ediffi_jax import stores
    from ediffi_jax.encoders.convert import convert

    folder = convert(
        INPUT.value, OUTPUT.value, max_shard_gb=MAX_SHARD_GB.value, dtype=DTYPE.value, encoder_only=ENCODER_ONLY.value
    )
    size = sum(file.stat().length for file in stores.at(folder).glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB of safetensors in {folder}")


if __name__ == "__main__":
    run(main, remote=("input", "output"))
