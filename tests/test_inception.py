"""Inception's features, its weights' layouts, and FID end to end against pytorch-fid and torch-fidelity."""

from __future__ import annotations

import jax
import metric_peers as peers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ediffi_jax.encoders.convert import convert
from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.evaluation import features, frechet, inception_files
from ediffi_jax.evaluation.errors import EvaluationError

FEW = 8  # features, fewer than pictures


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return peers.write_weights(tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth")


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures of two kinds, 12 of each, uint8 [2, 12, 48, 48, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (2, 12, 6, 6, 3)) * np.array([1.0, 0.6])[:, None, None, None, None]
    return np.stack([[_enlarged(x) for x in kind.astype(np.uint8)] for kind in coarse])


def _enlarged(x: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(x).resize((48, 48), Image.Resampling.BICUBIC))


def _theirs(network: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return network(x)[0].reshape(len(x), -1).numpy()


@pytest.fixture(scope="module")
def fidelity(weights, pictures):
    """Features of both kinds by our network and by torch-fidelity's, both resizing as TensorFlow 1 did."""
    network, peer = features.of_inception(weights, "tf1_bilinear"), peers.fidelity_network(weights)
    theirs = [_theirs(peer, torch.from_numpy(kind).permute(0, 3, 1, 2)) for kind in pictures]
    return [network(kind) for kind in pictures], theirs


@pytest.fixture(scope="module")
def folders(pictures, tmp_path_factory):
    """The same pictures as files."""
    root = tmp_path_factory.mktemp("pictures")
    for kind, name in zip(pictures, "ab"):
        (root / name).mkdir()
        for i, picture in enumerate(kind):
            Image.fromarray(picture).save(root / name / f"{i:02d}.png")
    return root / "a", root / "b"


def test_features_and_fid_are_those_of_torch_fidelity(fidelity):
    ours, theirs = fidelity
    for a, b in zip(ours, theirs, strict=True):
        assert 0.05 < np.abs(b).mean() < 20  # so that the bound below means something
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-5)
    # Of a few features, because their eigenvalues of 2048 x 2048 take minutes; all of them below.
    expected = _fidelity_fid([x[:, :FEW] for x in theirs])
    assert _fid([x[:, :FEW] for x in ours]) == pytest.approx(expected, rel=1e-4)


def test_fid_of_two_folders_is_that_of_pytorch_fid(weights, pictures, folders):
    network, peer = features.of_inception(weights, "torch_bilinear"), peers.pytorch_fid_network(weights)
    statistics = []
    for folder in folders:
        files = sorted(folder.iterdir())
        mean, covariance = peers.pytorch_fid.calculate_activation_statistics(files, peer, batch_size=12, num_workers=0)
        statistics += [mean[:FEW], covariance[:FEW, :FEW]]
    expected = peers.pytorch_fid.calculate_frechet_distance(*(statistics[i] for i in (0, 1, 2, 3)))
    assert _fid([network(kind)[:, :FEW] for kind in pictures]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.pod
def test_fid_of_all_features_is_that_of_both(weights, fidelity, folders, monkeypatch):
    ours, theirs = fidelity
    assert _fid(ours) == pytest.approx(_fidelity_fid(theirs), rel=1e-4)
    monkeypatch.setattr(peers.pytorch_fid, "InceptionV3", _reading(weights))
    expected = peers.pytorch_fid.calculate_fid_given_paths(list(map(str, folders)), 12, "cpu", 2048, num_workers=0)
    network = features.of_inception(weights, "torch_bilinear")
    files = [sorted(folder.iterdir()) for folder in folders]
    measured = _fid([network(np.stack([np.asarray(Image.open(file)) for file in kind])) for kind in files])
    # Their matrix root loses digits where covariances are singular, as they are with fewer pictures than features.
    assert measured == pytest.approx(float(expected), rel=1e-3)


def _fid(sides: list[np.ndarray]) -> float:
    return frechet.frechet_distance(*map(frechet.moments, sides))


def _fidelity_fid(sides: list[np.ndarray]) -> float:
    statistics = [peers.torch_fid.fid_features_to_statistics(torch.from_numpy(x).double()) for x in sides]
    return peers.torch_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def _reading(weights):
    class Network:
        BLOCK_INDEX_BY_DIM = peers.pytorch_inception.InceptionV3.BLOCK_INDEX_BY_DIM

        def __new__(cls, blocks):
            assert blocks == [3]
            return peers.pytorch_fid_network(weights)

    return Network


def test_every_layout_gives_the_same_network(weights, tmp_path):
    params, fingerprint = inception_files.load(weights)
    state = torch.load(weights, weights_only=True)
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(peers.pytorch_fid_network(weights).state_dict(), tmp_path / "wrapped.pth")
    converted = convert(weights, tmp_path / "converted")
    for path in (tmp_path / "weights.safetensors", tmp_path / "wrapped.pth", converted):
        again, same = inception_files.load(path)
        assert same == fingerprint
        jax.tree.map(np.testing.assert_array_equal, again, params)
    assert inception_files.load(peers.write_weights(tmp_path / "other.pth", seed=1))[1] != fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("Mixed_7c.branch1x1.conv.weight"), "'Mixed_7c.branch1x1.conv.weight' is missing"),
        (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048)}), "torchvision's ImageNet weights .1000 classes"),
        (lambda s: s.update({"AuxLogits.fc.bias": torch.zeros(1000)}), "torchvision's ImageNet weights"),
        (lambda s: s.update({"Conv2d_1a_3x3.conv.weight": torch.zeros(8, 3, 3, 3)}), "has shape .3, 3, 3, 8."),
    ],
)
def test_other_weights_are_refused_in_one_line(weights, tmp_path, change, message):
    state = torch.load(weights, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(EvaluationError, match=message) as caught:
        inception_files.load(tmp_path / "wrong.pth")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no Inception weights in .*nothing.pth"):
        inception_files.load(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(EncoderError, match="text.pth"):
        inception_files.load(tmp_path / "text.pth")
