"""FID and KID against the code that papers use, on the same features."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.components.statistics.bootstrap import Resampled
from stages.components.statistics.kernel_distance import kernel
from stages.evaluate.metrics import fid, kid, vgg_fd, vgg_kid_biased

PARITY = Path(sys.prefix) / "parity"  # `make setup` puts torch-fidelity there, see the Makefile
D = 16


class Anything(types.ModuleType):
    """A stand-in for a module of which nothing is called."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity's metric modules; it imports torchvision, whose place a stand-in takes.

    It must not lie where torchmetrics can see it: torchmetrics imports it then, and fails.
    """
    if not (PARITY / "torch_fidelity").is_dir():
        pytest.skip("torch-fidelity is not in .venv/parity; run: make setup")
    inside = ("datasets", "transforms", "transforms.functional", "models")
    stand_ins = ["torchvision", *(f"torchvision.{name}" for name in inside)]
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PARITY))
        for name in stand_ins:
            patch.setitem(sys.modules, name, Anything(name))
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
        found = [
            importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "kid")
        ]
    for name in set(sys.modules) - before:
        if name.startswith("torch_fidelity"):
            del sys.modules[name]
    return found


def features(n, shift=0.0, seed=0, d=D):
    rng = np.random.default_rng(seed)
    return rng.normal(loc=shift, size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)


class Lookup(torch.nn.Module):
    """Our features, as torchmetrics wants a network: an image's first pixel is its number."""

    num_features = D

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.from_numpy(rows)

    def forward(self, images):
        return self.rows[images[:, 0, 0, 0].long()]


def numbered(start, count):
    return torch.arange(start, start + count).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_fid_equals_torchmetrics_given_our_features(shift):
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, synthetic = features(200), features(180, shift, seed=1)
    metric = FrechetInceptionDistance(
        feature=Lookup(np.concatenate([real, synthetic])), input_img_size=(3, 2, 2)
    ).set_dtype(torch.float64)
    metric.update(numbered(0, 200), real=True)
    metric.update(numbered(200, 180), real=False)
    found = fid.compute(real=real, synthetic=synthetic)
    assert found == pytest.approx(float(metric.compute()), rel=1e-5)


def test_kid_equals_torchmetrics_given_our_features():
    from torchmetrics.image.kid import KernelInceptionDistance

    real, synthetic = features(100), features(100, 0.3, seed=1)
    with pytest.warns(UserWarning, match="will save all extracted features"):
        metric = KernelInceptionDistance(
            feature=Lookup(np.concatenate([real, synthetic])), subsets=1, subset_size=100
        )
    metric.update(numbered(0, 100), real=True)
    metric.update(numbered(100, 100), real=False)
    found = kid.resample(real=Resampled.once(real), synthetic=Resampled.once(synthetic))[0]
    assert found == pytest.approx(float(metric.compute()[0]), rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_fid_equals_torch_fidelity(fidelity, shift):
    module = fidelity[0]
    real, synthetic = features(200), features(150, shift, seed=1)
    statistics = [module.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, synthetic)]
    (expected,) = module.fid_statistics_to_metric(*statistics, verbose=False).values()
    assert fid.compute(real=real, synthetic=synthetic) == pytest.approx(expected, rel=1e-5)
    pairs = [(x["mu"], x["sigma"]) for x in statistics]
    assert fid.from_statistics(*pairs) == pytest.approx(expected, rel=1e-5)


def test_kid_equals_torch_fidelity(fidelity):
    module = fidelity[1]
    real, synthetic = features(90), features(90, 0.3, seed=1)
    expected = module.kid_features_to_metric(
        torch.from_numpy(real),
        torch.from_numpy(synthetic),
        kid_subsets=1,
        kid_subset_size=90,
        verbose=False,
    )[module.KEY_METRIC_KID_MEAN]
    assert kid.resample(real=Resampled.once(real), synthetic=Resampled.once(synthetic))[
        0
    ] == pytest.approx(expected, rel=1e-5)


def test_the_posters_kid_is_the_biased_estimator_of_torch_fidelity(fidelity):
    real, synthetic = features(10), features(10, 0.3, seed=1)  # every subset is the sample
    kernels = [kernel(a, b) for a, b in ((real, real), (real, synthetic), (synthetic,) * 2)]
    expected = fidelity[1].mmd2(*kernels, mmd_est="biased")
    found = vgg_kid_biased.resample(real=Resampled.once(real), synthetic=Resampled.once(synthetic))[
        0
    ]
    assert found == pytest.approx(expected, rel=1e-10)
    assert vgg_kid_biased.resample is not kid.resample


def test_the_posters_fid_is_ours_under_its_own_name():
    real, synthetic = features(50), features(50, 0.3, seed=1)
    sides = {"real": Resampled.once(real), "synthetic": Resampled.once(synthetic)}
    assert vgg_fd.resample(**sides)[0] == fid.resample(**sides)[0]
    assert (vgg_fd.SPEC.key, vgg_fd.SPEC.features) == ("vgg_fd", "vgg16")


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision works here"
)
def test_torch_fidelity_lies_where_torchmetrics_does_not_see_it():
    assert importlib.util.find_spec("torch_fidelity") is None
