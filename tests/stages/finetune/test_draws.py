"""The arithmetic of fine-tuning, by value; fault numbers are those of the usual example scripts."""

import math

import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from stages.finetune import loss, optimizers
from stages.finetune.draws import Draw, draw_sample, epoch_order, samples_of_step, spread_timesteps


def rate(step: int, schedule: str = "cosine") -> float:
    return optimizers.learning_rate(
        step, peak=1e-4, warmup_steps=50, max_steps=500, schedule=schedule
    )


def test_rate_reaches_its_peak_after_the_warmup_and_zero_at_the_end() -> None:
    # Fault 1: the SDXL script is at 1.25e-5 in step 50 and at 9.98e-5 in step 500.
    assert rate(1) == pytest.approx(2e-6)
    assert rate(25) == pytest.approx(5e-5)
    assert rate(50) == pytest.approx(1e-4)
    assert rate(275) == pytest.approx(5e-5)
    assert rate(500) == pytest.approx(0, abs=1e-18)


def test_constant_rate_stays_at_its_peak() -> None:
    assert [rate(step, "constant") for step in (25, 50, 500)] == [5e-5, 1e-4, 1e-4]


def test_no_warmup_starts_near_the_peak() -> None:
    first = optimizers.learning_rate(1, peak=1.0, warmup_steps=0, max_steps=10, schedule="cosine")
    assert first == pytest.approx(0.5 * (1 + math.cos(math.pi / 10)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_target_is_noise_or_velocity(kind: str) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=kind)
    latents, noise, steps = (
        torch.randn(2, 3, 4, 4),
        torch.randn(2, 3, 4, 4),
        torch.tensor([10, 900]),
    )
    found = loss.training_target(scheduler, latents, noise, steps)
    kept = scheduler.alphas_cumprod[steps][:, None, None, None]
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    torch.testing.assert_close(found, noise if kind == "epsilon" else velocity)


def test_sample_losses_are_weighted_means_in_float32() -> None:
    prediction = torch.full((2, 1, 2, 2), 3.0, dtype=torch.bfloat16)
    losses = loss.sample_losses(prediction, torch.ones(2, 1, 2, 2), torch.tensor([1.0, 0.5]))
    assert losses.tolist() == [4.0, 2.0]
    assert losses.dtype == torch.float32


def draw(*key: int | str, dropout: float = 0.1) -> Draw:
    return draw_sample(
        key, shape=(3, 4, 4), num_crops=2, num_timesteps=1000, caption_dropout=dropout
    )


def test_draws_depend_on_their_key_alone() -> None:
    first = draw(0, "finetune", 5, 0, "slice-1")
    torch.manual_seed(99)
    again = draw(0, "finetune", 5, 0, "slice-1")
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.posterior, again.posterior)
    assert first.timestep == again.timestep
    for other in (draw(0, "finetune", 6, 0, "slice-1"), draw(0, "finetune", 5, 0, "slice-2")):
        assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.noise, first.posterior)


def test_draws_cover_crops_and_timesteps_and_drop_the_asked_share_of_captions() -> None:
    draws = [draw("s", number) for number in range(2000)]
    assert {d.crop for d in draws} == {0, 1}
    assert sum(d.drops_caption for d in draws) == pytest.approx(200, abs=45)  # 3.3 sigma
    assert sum(d.timestep for d in draws) / 2000 == pytest.approx(499.5, abs=20)  # 3 sigma
    assert not any(draw("s", n, dropout=0.0).drops_caption for n in range(50))
    assert all(draw("s", n, dropout=1.0).drops_caption for n in range(50))


def test_an_epoch_holds_every_sample_once_and_orders_differ() -> None:
    steps = [samples_of_step(3, step, batch=4, count=10) for step in range(1, 6)]
    places = [place for step in steps for place in step]
    for epoch in (0, 1):
        assert sorted(sample for e, sample in places if e == epoch) == list(range(10))
    assert epoch_order(3, 0, 10) != epoch_order(3, 1, 10)
    assert epoch_order(3, 0, 10) != epoch_order(4, 0, 10)


def test_a_batch_larger_than_the_set_takes_samples_of_several_epochs() -> None:
    assert samples_of_step(0, 1, batch=3, count=1) == [(0, 0), (1, 0), (2, 0)]


def test_spread_timesteps_are_middles_of_equal_shares() -> None:
    assert spread_timesteps(4, 1000) == [125, 375, 625, 875]


def test_clipping_returns_the_true_norm_and_scales_the_gradients() -> None:
    # Fault 2: the SD 1.5 script clips an exhausted iterator and reports 0.
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert optimizers.clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    grads = torch.cat([p.grad for p in parameters if p.grad is not None])
    assert grads.tolist() == pytest.approx([0.6, 0, 0.8], abs=1e-6)
    assert optimizers.clip_gradients(parameters, 9.0) == pytest.approx(1.0, abs=1e-6)


def test_clipping_without_a_gradient_says_how_many_tensors_got_none() -> None:
    with pytest.raises(TrainingError, match="none of 2 trained tensors"):
        optimizers.clip_gradients([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))], 1.0)
