"""The estimate's parts by hand, on a network of four layers."""

import pytest

from pipeline.settings import FinetuneConfig
from stages.finetune import memory

UNET = {
    "conv_in.weight": (8, 4, 3, 3),
    "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight": (16, 16),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.bias": (16,),
    "time_embedding.linear_1.weight": (32, 8),
}
NUMBERS = 8 * 4 * 9 + 8 * 8 * 9 + 16 * 16 + 16 + 32 * 8
TARGETS = {"unet": ("to_q",)}


def estimate(dtype: str = "float32", rank: int = 2, **changes: object) -> memory.MemoryEstimate:
    config = FinetuneConfig(resolution=64, batch_size=3, optimizer="adamw", **changes)
    networks = {"unet": UNET, "vae": {"w": (10,)}}
    return memory.estimate(networks, config, TARGETS, {"unet": rank}, dtype)


def test_weights_and_adapter_are_counted_exactly() -> None:
    found = estimate()
    assert found.weights == 4 * (NUMBERS + 10)
    assert found.trained == 2 * (16 + 16) * (4 + 4 + 8)  # weights, gradients, two moments
    assert estimate("bfloat16").weights == 2 * NUMBERS + 4 * 10
    assert estimate(ema_decay=0.9).trained == 2 * 32 * 20
    assert estimate(adapter="dora").trained == (2 * 32 + 16) * 16


def test_four_bits_hold_the_transformers_only() -> None:
    saved = estimate("bfloat16").weights - estimate("bfloat16", quantize_base=True).weights
    assert saved == 256 * 2 - int(256 * (0.5 + 4 / 64))


def test_activations_go_with_places_and_batch() -> None:
    # 64 px: 8 x 8 latents; 8 outputs of two convolutions each, then 16 at 4 x 4.
    outputs = 2 * 8 * 64 + 16 * 16
    assert estimate().activations == pytest.approx(4 * 3 * 1.9 * outputs, abs=1)
    kept = 8 * 64 + 16 * 16  # inputs of conv1 and to_q; the larger block is made again
    assert estimate(gradient_checkpointing=True).activations == pytest.approx(
        4 * 3 * (kept + 1.9 * 8 * 64), abs=1
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv_in", 64),
        ("down_blocks.0.downsamplers.0.conv", 16),
        ("down_blocks.1.resnets.0.conv1", 16),
        ("mid_block.resnets.0.conv1", 4),
        ("up_blocks.0.resnets.0.conv1", 4),
        ("up_blocks.0.upsamplers.0.conv", 16),
        ("up_blocks.2.attentions.0.proj_in", 64),
        ("up_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k", 77),
        ("down_blocks.0.resnets.0.time_emb_proj", 1),
    ],
)
def test_places_of_layers(name: str, expected: int) -> None:
    assert memory.places(name, 64, depth=3) == expected
