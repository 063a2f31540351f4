"""The verbs sample and export as a user runs them: files, records, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cascade_fakes as fakes
import numpy as np
import pytest
from PIL import Image
from test_release import write_workdir

from ediffi_jax import release, samples
from ediffi_jax.stage import CascadeError

pytestmark = pytest.mark.slow
PROMPTS = fakes.CAPTIONS[:2]


def environment(cache: Path) -> dict[str, str]:
    """A process of one CPU device, as a user's, with a compilation cache of the test's own."""
    return {**os.environ, "XLA_FLAGS": "", "EDIFFI_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": ""}


def verb(name: str, *flags: str, cache: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"launch.{name}", *flags]
    return subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture(scope="module")
def made(root: Path) -> release.Release:
    return fakes.make_release(root)


@pytest.fixture(scope="module")
def folder(root: Path, made: release.Release) -> Path:
    return release.write_release(root / "release", made)


@pytest.fixture(scope="module")
def out(root: Path, folder: Path) -> Path:
    """Samples of two prompts from a file, three images each."""
    (root / "prompts.txt").write_text(f"{PROMPTS[0]}\n\n  {PROMPTS[1]}  \n")
    flags = [
        f"--cascade={folder}",
        f"--prompts_file={root / 'prompts.txt'}",
        "--num=3",
        "--seed=5",
        "--guidance=base=2.5",
    ]
    done = verb("sample", *flags, "--steps=sr16=1", f"--out={root / 'deep' / 'out'}", cache=root / "cache")
    assert done.returncode == 0, done.stderr
    assert "6 pictures in" in done.stdout
    return root / "deep" / "out"


def test_the_folder_holds_images_a_sheet_and_a_record_and_nothing_else(out: Path) -> None:
    names = [f"{index:04d}.png" for index in range(6)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "contact_sheet.png", "samples.jsonl"]
    for name in names:
        image = Image.open(out / name)
        assert image.size == (16, 16) and image.mode == "RGB"


def test_a_line_says_what_its_image_depends_on(out: Path, folder: Path) -> None:
    lines = samples.read_records(out)
    assert [(line["file"], line["index"], line["prompt"]) for line in lines] == [
        (f"{index:04d}.png", index, PROMPTS[index // 3]) for index in range(6)
    ]
    line = lines[0]
    assert line["seed"] == 5 and line["settings"]["num"] == 3
    assert line["settings"]["guidance"] == {"base": 2.5, "sr16": 0.0}
    assert line["settings"]["steps"] == {"base": 4, "sr16": 1}
    assert line["stages"]["base"]["sigma_max"] == fakes.BASE.sampler.sigma_max
    assert {"jax", "flax", "numpy", "ediffi_jax"} <= line["versions"].keys()
    assert line["cascade"] == {"name": folder.name, "fingerprint": line["cascade"]["fingerprint"]}
    assert len(line["cascade"]["fingerprint"]) == 16


def test_another_process_makes_every_image_again_bit_for_bit_from_the_record(
    out: Path, folder: Path, root: Path
) -> None:
    code = (
        "import json, sys, numpy as np, ediffi_jax as ed\n"
        "from PIL import Image\n"
        "folder, out = sys.argv[1:]\n"
        "lines = [json.loads(line) for line in open(out + '/samples.jsonl')]\n"
        "cascade = ed.load(folder)\n"
        "assert cascade.fingerprint == lines[0]['cascade']['fingerprint']\n"
        "prompts = list(dict.fromkeys(line['prompt'] for line in lines))\n"
        "images = cascade.sample(prompts, **lines[0]['settings'])\n"
        "for line in lines:\n"
        "    assert np.array_equal(images[line['index']], np.asarray(Image.open(out + '/' + line['file']))), line\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(out)],
        env=environment(root / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_compilation_cache_is_filled(out: Path, root: Path) -> None:
    assert out.exists()
    assert list((root / "cache").rglob("jit_run*"))


@pytest.mark.parametrize(("flags", "message"), [
    (["--cascade=scenesss"], "no cascade 'scenesss'"),
    (["--prompt="], "prompts"),
    (["--num=0"], "num is 0"),
    (["--guidance=much"], "--guidance=much; expected one float or stage=float"),
    (["--sampler=eulr"], "did you mean 'euler'"),
    (["--prompts_file=nowhere.txt"], "cannot read prompts from nowhere.txt"),
    (["--nun=3"], "did you mean 'num'"),
    (["--out=/dev/null/out"], "cannot write to the folder /dev/null/out"),
    (["--config.seed=3"], "unknown flag --config.seed: launch.sample takes no config; did you mean 'seed'?"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(folder: Path, root: Path, flags: list[str], message: str) -> None:
    common = [f"--cascade={folder}", "--prompt=a", f"--out={root / 'wrong'}"]
    if flags == ["--prompt="]:
        common.remove("--prompt=a")
    done = verb("sample", *common, *flags, cache=root / "cache")
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (root / "wrong").exists()  # nothing is begun


def test_help_teaches(root: Path) -> None:
    for name, example in (("sample", "--prompt="), ("export", "--workdirs=base=")):
        done = verb(name, "--help", cache=root / "cache")
        assert done.returncode == 0 and f"python -m launch.{name}" in done.stdout and example in done.stdout
    assert "D_c + w (D_c - D_0)" in verb("sample", "--help", cache=root / "cache").stdout


def test_export_stacks_runs_and_samples_like_the_original(
    made: release.Release, folder: Path, root: Path, out: Path
) -> None:
    base, sr = made.specs
    for expert in range(3):
        write_workdir(root / f"run{expert}", base, made.params[0], made.encoders, expert=expert)
    write_workdir(root / "sr", sr, made.params[1], made.encoders)
    stages = f"base={root / 'run0'},{root / 'run1'},{root / 'run2'},sr16={root / 'sr'}"
    done = verb("export", f"--workdirs={stages}", f"--out={root / 'exported'}", cache=root / "cache")
    assert done.returncode == 0, done.stderr
    assert "base: 8x8, 3 experts" in done.stdout
    before, after = (release.read_release(path) for path in (folder, root / "exported"))
    for a, b in zip(before.params, after.params, strict=True):
        a, b = release.flatten(a), release.flatten(b)
        assert all(np.array_equal(a[name], b[name]) for name in a)
    again = verb("export", f"--workdirs={stages}", f"--out={root / 'exported'}", cache=root / "cache")
    assert again.returncode == 2 and "is taken" in again.stderr


def test_interrupted_sampling_leaves_the_finished_images_with_their_record(tmp_path: Path, folder: Path) -> None:
    from ediffi_jax import cascade

    loaded = cascade.load(folder)
    request = loaded.request(PROMPTS, num=2, batch_size=2)
    full = type(loaded).run

    def interrupted(self: object, request: object) -> object:
        for number, batch in enumerate(full(self, request, progress=False)):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    (tmp_path / "0007.png").write_bytes(b"of an earlier run")
    (tmp_path / "mine.png").write_bytes(b"of the user, though somebody listed it")
    (tmp_path / "samples.jsonl").write_text('{"file": "0007.png"}\n{"file": "mine.png"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loaded), "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            samples.write_samples(tmp_path, loaded, request)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000.png",
        "0001.png",
        "contact_sheet.png",
        "mine.png",
        "samples.jsonl",
    ]
    assert len(samples.read_records(tmp_path)) == 2


@pytest.mark.parametrize(("text", "kind", "expected"), [
    ("2", float, 2.0),
    ("base=2,sr=0.5", float, {"base": 2.0, "sr": 0.5}),
    (None, int, None),
    ("sr=heun", str, {"sr": "heun"}),
])  # fmt: skip
def test_values_per_stage_are_parsed(text: str | None, kind: type, expected: object) -> None:
    assert samples.per_stage(text, kind, "x") == expected


def test_prompts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="no prompt"):
        samples.read_prompts([], None)
    (tmp_path / "p").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CascadeError, match="cannot read prompts"):
        samples.read_prompts([], tmp_path / "p")
    assert json.dumps(samples.read_prompts(["a"], None)) == '["a"]'
