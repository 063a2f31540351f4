"""Measures a cascade: FID, KID, CLIP score, precision and recall over guidance weights, as table, JSON and picture.

  python -m launch.evaluate --cascade=scenes --num=300 --guidance=0,1,2,4 --seeds=0,1,2 --out=runs/curve

needs no files: it draws scenes, seen by the bundled image tower, which is not Inception. The paper's FID-5K of COCO:

  python -m launch.evaluate --cascade=RELEASE --protocol=coco --annotations=captions_val2014.json --images=val2014 \\
      --inception=pt_inception-2015-12-05-6726825d.pth --clip=CLIP-ViT-g-14 --num=5000 --guidance=0:10:0.5 --out=runs/coco

Killed, the same command goes on; weights and seeds may be added later. --compare=RUN,RUN draws runs in one picture;
--generated=FOLDER measures pictures that are there already. docs/evaluation.md explains the numbers.
"""

from __future__ import annotations

from absl import flags

from ._main import refuse_overrides, run

CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or training workdir.")
STAGE = flags.DEFINE_string("stage", None, "Measure the pictures of this stage; default the last one's.")
GENERATED = flags.DEFINE_string("generated", None, "Instead of a cascade: a folder of pictures.")
COMPARE = flags.DEFINE_list("compare", None, "Instead of measuring: finished runs to draw together.")
PROTOCOL = flags.DEFINE_string("protocol", "scenes", "scenes, scenes_heldout, coco, visual_genome or tfds.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "captions_val2014.json, or region_descriptions.json.")
IMAGES = flags.DEFINE_string("images", None, "Folder of the real pictures; with tfds that of the data set.")
SPLIT = flags.DEFINE_string("split", "validation", "Of a tfds data set.")
NUM = flags.DEFINE_integer("num", None, "Pictures for each weight and seed: the paper's 5000 or 30000. Default 300.")
REFERENCE_NUM = flags.DEFINE_integer("reference_num", None, "Real pictures; default as many.")
PROMPT_SEED = flags.DEFINE_integer("prompt_seed", 0, "Of the choice of prompts and real pictures.")
GUIDANCE = flags.DEFINE_string("guidance", "0,0.5,1,2,4", "Weights of the base, 0 = none: 0,1,2 or first:last:step.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the noise; three give a spread.")
SAMPLER = flags.DEFINE_string("sampler", None, "Solver for all stages, or stage=name,stage=name.")
STEPS = flags.DEFINE_string("steps", None, "Solver steps for all stages, or stage=n,stage=n.")
ENCODERS = flags.DEFINE_list("encoders", None, "Condition on only these of t5, clip_text, clip_image.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Pictures sampled at a time; default 8 per device.")
INCEPTION = flags.DEFINE_string("inception", None, "FID weights (.pth, .safetensors); default the bundled tower.")
CLIP = flags.DEFINE_string("clip", None, "Hugging Face CLIP for the score; default the bundled one.")
RESIZE = flags.DEFINE_string("resize", "pil_bicubic", "How pictures reach the feature network; see the docs.")
REFERENCE = flags.DEFINE_string("reference", None, ".npz of reference statistics: read if there, else written.")
SAVE_EVERY = flags.DEFINE_integer("save_every", 1024, "Pictures between two savings.", lower_bound=1)
DUMP = flags.DEFINE_bool("dump", False, "Also write the pictures.")
KEEP_FEATURES = flags.DEFINE_bool("keep_features", False, "Leave the features of generated pictures in --out.")
LABEL = flags.DEFINE_string("label", None, "What the picture calls this run; default the cascade's name.")
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main(overrides: list[str]) -> None:
    """Opens everything, then measures."""
    refuse_overrides(overrides)
    from ediffi_jax import cascade, devices, pictures, samples
    from ediffi_jax.evaluation import curve_picture, curves, inputs, picture_folder, tradeoff

    if COMPARE.value:
        return print(curve_picture.write([curves.read(path) for path in COMPARE.value], OUT.value))
    sampler, steps = samples.per_stage(SAMPLER.value, str, "sampler"), samples.per_stage(STEPS.value, int, "steps")
    wishes = {"encoders": ENCODERS.value, "batch_size": BATCH_SIZE.value, "sampler": sampler, "steps": steps}
    points = {"guidance": inputs.weights(GUIDANCE.value), "seeds": inputs.seeds(SEEDS.value)}
    found = picture_folder.read(GENERATED.value, NUM.value) if GENERATED.value else None
    num = len(found.files) if found else NUM.value or 300
    loaded = None if found else inputs.up_to(cascade.load(CASCADE.value, devices=devices.use_cores()), STAGE.value)
    resolution = found.resolution if found else loaded.stages[-1].spec.resolution
    where = {"annotated": ANNOTATIONS.value, "images": IMAGES.value, "split": SPLIT.value, "resolution": resolution}
    asked = inputs.protocol(PROTOCOL.value, max(num, REFERENCE_NUM.value or num), seed=PROMPT_SEED.value, **where)
    if loaded:
        tradeoff.check(loaded, asked, num, **points, **wishes)
    network, clip = inputs.network(INCEPTION.value, RESIZE.value), inputs.clip(CLIP.value)
    compared = REFERENCE.value, network, asked, resolution, REFERENCE_NUM.value or num
    real = inputs.real(*compared, before=lambda: pictures.make_folder(OUT.value, remote=True))
    if found:
        return print(picture_folder.write(found, real, network, clip, OUT.value))
    curve = tradeoff.sweep(
        loaded, asked, real, network, clip, num=num, out=OUT.value, label=LABEL.value, save_every=SAVE_EVERY.value,
        dump=DUMP.value, keep_features=KEEP_FEATURES.value, **points, **wishes,
    )  # fmt: skip
    print(curve_picture.write([curve], OUT.value))


if __name__ == "__main__":
    run(main, remote="cascade generated compare annotations images inception clip reference out".split())
