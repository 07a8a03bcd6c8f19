"""Attention held to the place: which words, which cells, and that watching changes no image."""

import pytest
import torch

from stages.components.diffusion import grounding
from stages.components.networks.weights import Family
from stages.embedded import base_data, base_training


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("tumor: no; location: left frontal lobe; size: small", "left frontal lobe"),
        ("Axial brain MRI showing a round cyst located in the right falx. T1", "right falx"),
        ("tumor: no; orientation: axial; general description: brain MRI", ""),
        ("tumor: yes; location: falx", "falx"),
        ("", ""),
    ],
)
def test_the_words_that_name_the_place_are_found(caption: str, words: str) -> None:
    tokenizer = base_data.build_tokenizer()
    marked = grounding.place_tokens(caption, tokenizer)
    ids = torch.tensor(tokenizer(caption, padding="max_length").input_ids)
    assert marked.shape == (77,)
    assert tokenizer.decode(ids[marked]).strip() == words


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_watching_changes_nothing_but_rounding(family: Family) -> None:
    torch.manual_seed(0)
    unet = base_training.new_unet(family, 12, 16)
    width = unet.config.cross_attention_dim
    told = torch.randn(2, 77, width)
    extra = {
        "text_embeds": torch.randn(2, base_training.TEXT_WIDTH_2),
        "time_ids": torch.zeros(2, 6),
    }
    arguments = (torch.randn(2, 12, 16, 16), torch.tensor([10, 900]), told)
    with torch.no_grad():
        expected = unet(*arguments, added_cond_kwargs=extra).sample
        watched = grounding.watch_attention(unet)
        found = unet(*arguments, added_cond_kwargs=extra).sample
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(watched) > 3
    for attention in watched:
        assert attention.probabilities is not None
        assert torch.allclose(attention.probabilities.sum(-1), torch.ones(()), atol=1e-5)


def attention_on(cells: list[int]) -> grounding.WatchedAttention:
    """Attend from these of 64 cells to token 1, and from all others to token 0."""
    made = grounding.WatchedAttention()
    probabilities = torch.zeros(1, 1, 64, 3)
    probabilities[..., 0] = 1
    probabilities[:, :, cells] = torch.tensor([0.0, 1.0, 0.0])
    made.probabilities = probabilities
    return made


def test_the_loss_is_least_where_the_words_attend_to_the_lesion() -> None:
    lesions = torch.zeros(1, 8, 8, dtype=torch.bool)
    lesions[0, 2, 3:5] = True
    places = torch.tensor([[False, True, False]])
    inside, wide, outside = (
        float(grounding.grounding_losses([attention_on(cells)], places, lesions))
        for cells in ([19, 20], [19, 20, 21, 22], [40, 41])
    )
    assert inside == pytest.approx(0, abs=1e-3)
    assert inside < wide < outside
    # half of the words' attention is outside, and two cells of 64 are wrong by all
    assert wide == pytest.approx(0.25 + 2 / 64 * 9.21, abs=5e-3)


def test_slices_without_lesion_or_place_words_count_nothing() -> None:
    lesions = torch.zeros(1, 8, 8, dtype=torch.bool)
    places = torch.tensor([[False, True, False]])
    watched = [attention_on([0])]
    assert float(grounding.grounding_losses(watched, places, lesions)) == 0
    lesions[0, 2, 3] = True
    assert float(grounding.grounding_losses(watched, ~places & places, lesions)) == 0
    assert float(grounding.grounding_losses(watched, places, lesions)) > 1


def test_each_sample_has_a_loss_of_its_own() -> None:
    lesions = torch.zeros(3, 8, 8, dtype=torch.bool)
    lesions[:2, 2, 3] = True
    places = torch.tensor([[False, True, False], [False, False, False], [False, True, False]])
    made = attention_on([0])
    assert made.probabilities is not None
    made.probabilities = made.probabilities.expand(3, -1, -1, -1).clone().requires_grad_()
    losses = grounding.grounding_losses([made], places, lesions)
    assert losses.shape == (3,)
    assert float(losses[0].detach()) > 1
    assert losses[1:].tolist() == [0, 0]
    losses.sum().backward()
    gradient = made.probabilities.grad
    assert gradient is not None
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


def test_gradients_are_the_same_with_checkpointing() -> None:
    torch.manual_seed(0)
    told = torch.randn(1, 77, base_training.TEXT_WIDTH)
    lesions = torch.zeros(1, 16, 16, dtype=torch.bool)
    lesions[0, 4:8, 4:8] = True
    places = torch.zeros(1, 77, dtype=torch.bool)
    places[0, 3:6] = True
    noisy, timesteps = torch.randn(1, 12, 16, 16), torch.tensor([500])
    unet = base_training.new_unet("sd", 12, 16).train()
    watched = grounding.watch_attention(unet)
    key = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
    found = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            unet.enable_gradient_checkpointing()
        unet.zero_grad()
        loss = unet(noisy, timesteps, told).sample.square().mean()
        loss = loss + grounding.grounding_losses(watched, places, lesions).sum()
        loss.backward()
        assert key.grad is not None
        found.append(key.grad.clone())
    assert found[0].abs().max() > 0
    assert torch.allclose(found[0], found[1], atol=1e-7)
