import pytest
import torch

from pipeline.errors import MissingWeightsError
from stages.classify.classifiers import efficientnet_lite0
from stages.classify.classifiers.efficientnet_lite0 import Settings
from stages.components.features.extractors import efficientnet_lite0 as features
from stages.components.features.extractors.efficientnet_lite0 import load


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return efficientnet_lite0.build(Settings(), 64, 4)


def test_the_trunk_is_the_one_of_the_features(network):
    images = torch.rand(1, 3, 224, 224) * 2 - 1
    extractor = load(features.Settings())
    pixels = (images + 1) * 127.5
    with torch.inference_mode():
        network.eval()
        expected = extractor.network.features((pixels - features.MEAN) / features.STD)
        found = network(images)
        torch.testing.assert_close(found, network.head(expected), atol=1e-4, rtol=1e-4)
    assert found.shape == (1, 4)


def test_every_layer_is_trained(network):
    network.train()
    network(torch.rand(2, 3, 64, 64) * 2 - 1).square().sum().backward()
    open_to = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in open_to.values())
    assert "trunk._conv_stem.weight" in open_to and "head.weight" in open_to
    assert "trunk._fc.weight" not in open_to
    network.zero_grad()


def test_absent_weights_are_named(tmp_path):
    gone = Settings(weights=str(tmp_path / "gone.pth"))
    assert "gone.pth" in efficientnet_lite0.check(gone)[0]
    with pytest.raises(MissingWeightsError, match=r"gone\.pth"):
        efficientnet_lite0.build(gone, 64, 2)
