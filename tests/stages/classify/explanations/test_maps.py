"""Each explanation against what it must find, and against captum on the same networks."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import registry
from stages.classify.classifiers import vit
from stages.classify.classifiers._vision_transformer import Attention
from stages.classify.explanations import attention, grad_cam, occlusion, rollout, smooth_grad
from stages.classify.maps import blur, log_odds

NAMES = registry.available(registry.EXPLANATIONS)


class Weighted(nn.Module):
    """The log odds of class 1 are a weighted sum of the first channel."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, images):
        score = (images[:, 0] * self.weight).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Convolved(nn.Module):
    """Two layers of features and a mean, as a convolutional network has them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 5, 3))
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        return self.trace_maps(images)[1]

    def trace_maps(self, images):
        maps = self.body(images)
        return maps, self.head(maps.mean(dim=(2, 3)))


def transformer(num_layers=2):
    torch.manual_seed(0)
    settings = vit.Settings(
        patch_size=8, embed_dim=16, num_heads=2, num_layers=num_layers, fc_dim=8
    )
    return vit.build(settings, 32, 2).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    gray = torch.rand(3, 1, 32, 32, generator=generator) * 2 - 1
    return gray.expand(-1, 3, -1, -1).contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_a_map_is_of_its_own_slice(name, images):
    module, network = registry.find(registry.EXPLANATIONS, name), transformer()
    assert module.find_obstacle(network) is None
    maps = module.explain(network, images, target=1, seed=5)
    assert maps.shape == (3, 32, 32)
    assert maps.dtype == np.float64
    assert np.isfinite(maps).all() and (maps >= 0).all() and maps.max() > 0
    alone = module.explain(network, images[[2]], target=1, seed=5)
    np.testing.assert_allclose(alone[0], maps[2], rtol=1e-3, atol=1e-5 * maps.max())


def test_attention_is_what_the_class_token_reads(images):
    network = transformer(num_layers=1)
    (weights,) = network.attentions(images)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 17))
    maps = attention.explain(network, images, target=1, seed=0)
    patch = weights.mean(dim=1)[0, 0, 1 + 5]  # row 1, column 1 of a square of 4
    assert maps[0, 8:16, 8:16] == pytest.approx(np.full((8, 8), float(patch.detach())))


def test_weights_are_those_that_attention_mixes_with():
    torch.manual_seed(0)
    layer, tokens = Attention(8, 2), torch.randn(2, 5, 8)
    weights = layer.weigh(tokens)
    value = layer._project(tokens)[2]
    mixed = (weights @ value).transpose(1, 2).reshape(2, 5, 8)
    torch.testing.assert_close(layer.to_out(mixed), layer(tokens))


def test_rollout_of_one_layer_is_its_attention(images):
    network = transformer(num_layers=1)
    found = [part.explain(network, images, target=1, seed=0) for part in (attention, rollout)]
    np.testing.assert_allclose(found[0] / 2, found[1], rtol=1e-5)


def test_rollout_multiplies_layers(images):
    network = transformer(num_layers=2)
    first, second = (
        ((layer.double().mean(dim=1) + torch.eye(17)) / 2) for layer in network.attentions(images)
    )
    expected = (second @ first)[:, 0, 1:].reshape(3, 4, 4)
    maps = rollout.explain(network, images, target=1, seed=0)
    np.testing.assert_allclose(maps[:, ::8, ::8], expected.detach().numpy(), rtol=1e-6)


def test_traced_logits_are_the_network_s_own(images):
    network = transformer()
    maps, logits = network.trace_maps(images)
    assert maps.shape == (3, 16, 4, 4)
    torch.testing.assert_close(logits, network(images))


@pytest.mark.parametrize("module", [attention, rollout])
def test_a_network_without_attention_is_said_to_be_one(module):
    assert "Convolved has no attention" in module.find_obstacle(Convolved())


def test_a_network_without_maps_is_said_to_be_one():
    assert "Weighted shows no maps" in grad_cam.find_obstacle(Weighted(torch.ones(1)))


def test_log_odds_of_several_classes():
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    share = logits.softmax(dim=1)[0, 1]
    torch.testing.assert_close(log_odds(logits, 1)[0], torch.log(share / (1 - share)))


def test_smooth_grad_of_a_linear_network_is_its_weight(images):
    weight = torch.linspace(-1, 1, 32 * 32).reshape(32, 32)
    maps = smooth_grad.explain(Weighted(weight), images, target=1, seed=3)
    np.testing.assert_allclose(maps[1], weight.abs().numpy(), atol=1e-6)


def test_smooth_grad_repeats_by_seed(images):
    network = transformer()
    first, again, other = (
        smooth_grad.explain(network, images, target=1, seed=seed) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert not np.allclose(first, other, rtol=1e-3)


def test_occlusion_finds_the_only_place_that_counts():
    weight = torch.zeros(32, 32)
    weight[8:12, 20:24] = 1
    image = torch.full((1, 3, 32, 32), -1.0)
    image[:, :, 8:12, 20:24] = 1.0
    maps = occlusion.explain(Weighted(weight), image, target=1, seed=0)
    assert maps[0, 8:12, 20:24].min() > 0
    far = maps[0].copy()
    far[4:16, 16:28] = 0  # windows that touch it
    assert far.max() == 0
    against = occlusion.explain(Weighted(-weight), image, target=1, seed=0)
    assert against.max() == 0  # covering it raises the class


def test_windows_end_with_the_side():
    assert occlusion.list_starts(32, 4) == list(range(0, 29, 2))
    assert occlusion.list_starts(11, 4) == [0, 2, 4, 6, 7]


def test_what_covers_keeps_brightness_and_no_structure(images):
    cover = blur(images)
    assert float(cover.std()) < 0.2 * float(images.std())
    assert float(cover.mean()) == pytest.approx(float(images.mean()), abs=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Setting backward hooks")
def test_occlusion_and_grad_cam_are_captum_s(images):
    from captum.attr import LayerGradCam, Occlusion

    torch.manual_seed(2)
    network = Convolved().eval()
    window = (3, 4, 4)
    with torch.no_grad():
        reference = Occlusion(lambda x: log_odds(network(x), 1)).attribute(
            images, sliding_window_shapes=window, strides=(3, 2, 2), baselines=blur(images)
        )
    maps = occlusion.explain(network, images, target=1, seed=0)
    expected = reference[:, 0].clamp(min=0).numpy()
    np.testing.assert_allclose(maps, expected, atol=1e-5)

    cam = LayerGradCam(lambda x: log_odds(network(x), 1), network.body)
    grid = cam.attribute(images, relu_attributions=True, attr_dim_summation=True)
    large = nn.functional.interpolate(grid, (32, 32), mode="bilinear").detach()[:, 0]
    maps = grad_cam.explain(network, images, target=1, seed=0)
    np.testing.assert_allclose(maps, large.numpy(), atol=1e-6)
