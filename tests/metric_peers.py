"""pytorch-fid and torch-fidelity without torchvision, of which the functions compared with use next to nothing.

They import it for data sets, other networks and Inception's unchanged blocks. Empty stand-ins serve the first two
while the peers are imported; the blocks are torch-fidelity's own, which has them all.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch

from ediffi_jax.evaluation.inception_files import CLASSES


class _ToTensor:
    """uint8 [h, w, 3] to float [3, h, w] in [0, 1]."""

    def __call__(self, picture):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def _stand_ins() -> dict[str, types.ModuleType]:
    names = ("", ".datasets", ".transforms", ".transforms.functional", ".models", ".models.inception")
    modules = {f"torchvision{name}": types.ModuleType(f"torchvision{name}") for name in names}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modules["torchvision"].__version__ = "0.0"
    for name in ("CIFAR10", "STL10", "CIFAR100"):
        setattr(modules["torchvision.datasets"], name, object)
    modules["torchvision.transforms"].ToTensor = _ToTensor
    return modules


def _import() -> tuple[types.ModuleType, ...]:
    modules = _stand_ins()
    present = {name for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        importlib.import_module("torch_fidelity")
        extractor = sys.modules["torch_fidelity.feature_extractor_inceptionv3"]
        inception = modules["torchvision.models.inception"]
        inception.InceptionA, inception.InceptionC = extractor.InceptionA, extractor.InceptionC
        inception.InceptionE = extractor.InceptionE_1
        modules["torchvision.models"].inception_v3 = lambda **_: _Bare(extractor)
        fid = importlib.import_module("pytorch_fid.fid_score")
    finally:
        for name in modules.keys() - present:
            del sys.modules[name]
    return extractor, sys.modules["pytorch_fid.inception"], fid


class _Bare(torch.nn.Module):
    """torchvision's Inception: the parts that pytorch-fid keeps, with as many classes as the published file."""

    def __init__(self, extractor: types.ModuleType) -> None:
        super().__init__()
        unit = extractor.BasicConv2d
        self.Conv2d_1a_3x3 = unit(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = unit(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = unit(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = unit(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = unit(80, 192, kernel_size=3)
        self.Mixed_6a = extractor.InceptionB(288)
        self.Mixed_7a = extractor.InceptionD(768)
        self.fc = torch.nn.Linear(2048, CLASSES)


extractor, pytorch_inception, pytorch_fid = _import()
torch_kid = sys.modules["torch_fidelity.metric_kid"]
torch_fid = sys.modules["torch_fidelity.metric_fid"]
torch_prc = sys.modules["torch_fidelity.metric_prc"]


def write_weights(file: Path, seed: int = 0) -> Path:
    """A state dict in the published layout with random weights whose activations stay of order one."""
    torch.manual_seed(seed)
    plain = object.__new__(extractor.FeatureExtractorInceptionV3)
    # The constructor wants the file that is to be written: build its parts without reading it.
    load, torch.load = torch.load, lambda *_, **__: {}
    strict = torch.nn.Module.load_state_dict
    torch.nn.Module.load_state_dict = lambda self, state: None
    try:
        plain.__init__("random", ["2048"], feature_extractor_weights_path="none")
    finally:
        torch.load, torch.nn.Module.load_state_dict = load, strict
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, torch.nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.3)
    torch.save(plain.state_dict(), file)
    return file


def fidelity_network(file: Path) -> torch.nn.Module:
    """torch-fidelity's extractor of pool3, with the weights of a file."""
    return extractor.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))


def pytorch_fid_network(file: Path) -> torch.nn.Module:
    """pytorch-fid's network, with the weights of a file."""
    published = pytorch_inception.load_state_dict_from_url
    pytorch_inception.load_state_dict_from_url = lambda *_, **__: torch.load(file, weights_only=True)
    try:
        return pytorch_inception.InceptionV3([3]).eval()
    finally:
        pytorch_inception.load_state_dict_from_url = published
