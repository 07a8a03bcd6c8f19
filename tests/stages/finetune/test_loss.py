"""Weights by value: at named SNRs, and for named timesteps of the common schedule."""

import pytest
import torch

from pipeline.errors import TrainingError
from stages.finetune.loss import loss_weights, signal_to_noise

SNR = torch.tensor([0.0, 0.25, 4.0, 25.0])


@pytest.mark.parametrize(
    ("weighting", "kind", "expected"),
    [
        ("min_snr", "epsilon", [1.0, 1.0, 1.0, 0.2]),
        ("min_snr", "v_prediction", [0.0, 0.25 / 1.25, 4 / 5, 5 / 26]),
        ("debiased", "epsilon", [100.0, 2.0, 0.5, 0.2]),  # 0 is held at 1e-4
        ("debiased", "v_prediction", [0.0, 0.5 / 1.25, 2 / 5, 5 / 26]),
        ("none", "epsilon", [1.0] * 4),
        ("none", "v_prediction", [1.0] * 4),
    ],
)
def test_weights_in_closed_form(weighting: str, kind: str, expected: list[float]) -> None:
    assert loss_weights(SNR, kind, weighting, 5.0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_noise_and_velocity_weigh_the_error_of_the_image_alike(weighting: str) -> None:
    snr = torch.tensor([0.01, 0.7, 3.0, 40.0, 900.0])
    noise, velocity = (loss_weights(snr, k, weighting) for k in ("epsilon", "v_prediction"))
    torch.testing.assert_close(noise * snr, velocity * (snr + 1))


def test_values_at_named_timesteps_of_the_schedule_of_stable_diffusion() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = signal_to_noise(scheduler.alphas_cumprod, torch.tensor([0, 250, 500, 999]))
    # By hand: abar is the product of 1 - beta, sqrt(beta) linear from sqrt(.00085) to sqrt(.012).
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[[0, 250, 500, 999]]
    assert snr.tolist() == pytest.approx((kept / (1 - kept)).tolist(), rel=1e-3)
    weights = loss_weights(snr, "epsilon", "min_snr", 5.0)
    assert weights.tolist() == pytest.approx([5 / 1175.5, 1.0, 1.0, 1.0], rel=2e-3)


def test_snr_of_a_zero_terminal_schedule_is_zero_and_its_weights_are_finite() -> None:
    snr = signal_to_noise(torch.tensor([0.9, 0.5, 0.0]), torch.tensor([0, 1, 2]))
    assert snr.tolist() == pytest.approx([9.0, 1.0, 0.0])
    for kind in ("epsilon", "v_prediction"):
        for weighting in ("min_snr", "debiased", "none"):
            assert torch.isfinite(loss_weights(snr, kind, weighting)).all()


def test_unknown_prediction_type_is_named() -> None:
    with pytest.raises(TrainingError, match="'sample'"):
        loss_weights(torch.ones(1), "sample", "none")
