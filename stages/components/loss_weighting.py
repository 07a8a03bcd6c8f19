"""How much each timestep counts: weights of the squared error as functions of signal to noise."""

from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import TrainingError

Weighting = Literal["min_snr", "debiased", "none"]

# Below this signal-to-noise ratio (zero-terminal schedules) 1 / sqrt(SNR) is held constant. The
# last step of the common schedule has 0.0047, so it is not touched.
LEAST_SNR = 1e-4


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return SNR(t) = abar_t / (1 - abar_t), float32 (batch,); 0 at zero-terminal schedules."""
    kept = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return kept / (1 - kept)


def loss_weights(
    snr: Tensor, prediction_type: str, weighting: Weighting, gamma: float = 5.0
) -> Tensor:
    """Return the weight of each sample's squared error, (batch,).

    | weighting  | noise prediction     | v-prediction               |
    |------------|----------------------|----------------------------|
    | `min_snr`  | min(SNR, gamma)/SNR  | min(SNR, gamma)/(SNR + 1)  |
    | `debiased` | 1/sqrt(SNR)          | sqrt(SNR)/(SNR + 1)        |
    | `none`     | 1                    | 1                          |

    Both columns of a row weigh the error of the image they stand for alike, since the squared
    error of the noise is SNR times, that of v (SNR + 1) times the image's. Written so that SNR = 0
    (zero-terminal schedules) gives finite numbers.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023.
    Yu et al., "Debias the Training of Diffusion Models", 2023, for noise prediction; carried over
    to v-prediction as said above, where some trainers use 1/(SNR + 1).

    Raises:
        TrainingError: The model predicts neither noise nor velocity.
    """
    require_prediction_type(prediction_type)
    is_noise = prediction_type == "epsilon"
    if weighting == "none":
        return torch.ones_like(snr)
    if weighting == "min_snr":
        return (gamma / snr).clamp(max=1.0) if is_noise else snr.clamp(max=gamma) / (snr + 1)
    if is_noise:
        return snr.clamp(min=LEAST_SNR).rsqrt()
    return snr.sqrt() / (snr + 1)


def require_prediction_type(prediction_type: str) -> None:
    """Refuse a model whose target is unknown here.

    Raises:
        TrainingError: The model predicts neither noise nor velocity.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise TrainingError(
            f"the base model's scheduler has prediction_type {prediction_type!r}; expected "
            "'epsilon' or 'v_prediction'"
        )
