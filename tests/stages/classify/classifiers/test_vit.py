import pytest
import torch

from pipeline.errors import ConfigError
from stages.classify.classifiers import vit
from stages.classify.classifiers._vision_transformer import Attention
from stages.classify.classifiers.vit import Settings


def test_the_poster_s_network_has_the_poster_s_parts():
    network = vit.build(Settings(), 512, 2)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["to_tokens.weight"] == (128, 3 * 16 * 16)
    assert shapes["positions"] == (1, 32 * 32 + 1, 128)
    assert shapes["class_token"] == (1, 1, 128)
    assert shapes["blocks.0.fc.0.weight"] == (512, 128)
    assert shapes["head.weight"] == (2, 128)
    assert "blocks.1.fc.0.weight" not in shapes
    assert network.blocks[0].attention.num_heads == 4
    assert network.dropout.p == 0.3


def test_logits_of_a_batch():
    network = vit.build(Settings(patch_size=8), 32, 2).eval()
    assert network(torch.zeros(3, 3, 32, 32)).shape == (3, 2)


def test_images_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    network = vit.build(Settings(patch_size=8), 32, 2).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        alone = torch.cat([network(images[[k]]) for k in range(4)])
        torch.testing.assert_close(network(images), alone, atol=1e-5, rtol=1e-5)


def test_places_matter():
    torch.manual_seed(0)
    network = vit.build(Settings(patch_size=8), 32, 2).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.allclose(network(image), network(image.flip(-1)), atol=1e-6)


def test_attention_equals_torch():
    torch.manual_seed(0)
    attention = Attention(128, 4)
    reference = torch.nn.MultiheadAttention(128, 4, batch_first=True)
    reference.in_proj_weight.data = attention.to_qkv.weight.data
    reference.in_proj_bias.data = attention.to_qkv.bias.data
    reference.out_proj.load_state_dict(attention.to_out.state_dict())
    tokens = torch.randn(2, 5, 128)
    with torch.inference_mode():
        expected, _ = reference(tokens, tokens, tokens)
        torch.testing.assert_close(attention(tokens), expected, atol=1e-5, rtol=1e-5)


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(
        ConfigError, match=r"patch_size: expected a divisor of .*\(100 px\), found 16"
    ):
        vit.build(Settings(), 100, 2)


def test_heads_that_do_not_share_the_embedding_are_refused():
    with pytest.raises(ConfigError, match="multiple of num_heads 3, found 128"):
        vit.build(Settings(num_heads=3), 512, 2)


def test_several_classes():
    assert vit.build(Settings(patch_size=8), 32, 4).head.out_features == 4


def test_standardised_slices_may_be_brighter_and_of_more_contrast():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for is_standardised in (True, False):
            torch.manual_seed(0)
            settings = Settings(patch_size=8, standardise=is_standardised)
            network = vit.build(settings, 32, 2).eval()
            is_same = torch.allclose(network(images), network(0.5 * images - 0.2), atol=1e-4)
            assert is_same == is_standardised
