"""The loss of fine-tuning: target, weighting over noise, emphasis on lesions, grounding."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel, predict, time_ids
from stages.components.diffusion.grounding import WatchedAttention, grounding_losses, place_tokens
from stages.finetune.training_set import Batch, TrainingSet

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Weighting = Literal["min_snr", "debiased", "none"]

# Below this signal-to-noise ratio (zero-terminal schedules) 1 / sqrt(SNR) is held constant. The
# last step of the common schedule has 0.0047, so it is not touched.
LEAST_SNR = 1e-4


def compute_losses(
    base: BaseModel,
    config: FinetuneConfig,
    data: TrainingSet,
    batch: Batch,
    *,
    dtype: torch.dtype,
    watched: list[WatchedAttention],
) -> Tensor:
    """Return the weighted loss of each sample, float32 (batch,); consumes no randomness.

    Args:
        base: The networks; the loss is computed where the UNet is.
        config: Resolution, and the weights of the loss's parts.
        data: What the rows of the batch are of.
        batch: Rows of `data`, with the draws of each.
        dtype: Of the noisy latents, (batch, channel, h, w); in bfloat16 the networks run under
            autocast. The loss itself is float32.
        watched: The attention that `config.grounding_weight` steers; without it, it is empty.
    """
    device = next(base.unet.parameters()).device
    rows, draws = batch.rows, batch.draws
    crops = [draw.crop for draw in draws]

    # Drawn afresh from the cached posterior, so the cache freezes nothing.
    posterior = torch.stack([draw.posterior for draw in draws])
    latents = data.latents.mean[rows, crops] + data.latents.std[rows, crops] * posterior
    latents = latents.to(device)
    noise = torch.stack([draw.noise for draw in draws]).to(device)
    timesteps = torch.tensor([draw.timestep for draw in draws], device=device)
    noisy = base.noise_scheduler.add_noise(latents, noise, timesteps)

    texts = [
        "" if draw.drops_caption else data.caption(row, draw.crop)
        for row, draw in zip(rows, draws, strict=True)
    ]
    ids = time_ids(config.resolution, data.latents.crops[rows, crops].to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        conditioning = data.condition(base, texts, device)
        prediction = predict(base, noisy.to(dtype), timesteps, conditioning, ids)

    target = training_target(base.noise_scheduler, latents, noise, timesteps)
    snr = signal_to_noise(base.noise_scheduler.alphas_cumprod, timesteps)
    kind = base.noise_scheduler.config.prediction_type
    weights = loss_weights(snr, kind, config.loss_weighting, config.min_snr_gamma)
    emphasis = None
    inside = None if data.lesions is None else data.lesions[rows, crops].to(device)
    if inside is not None:
        emphasis = torch.where(inside, config.lesion_weight, 1.0)
    losses = sample_losses(prediction, target, weights, emphasis)
    if inside is not None and watched:
        tokenizer = base.tokenizers[0]
        places = torch.stack([place_tokens(text, tokenizer) for text in texts]).to(device)
        strays = grounding_losses(watched, places, inside)
        losses = losses + config.grounding_weight * strays
    return losses


def training_target(
    noise_scheduler: "DDPMScheduler", latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Return what the UNet should predict, the shape of `latents`: noise or velocity."""
    if noise_scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
    return velocity


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


def sample_losses(
    prediction: Tensor, target: Tensor, weights: Tensor, emphasis: Tensor | None = None
) -> Tensor:
    """Return each sample's weighted mean squared error, float32 (batch,).

    `emphasis`, (batch, h, w), multiplies the squared error of each cell; None: 1 everywhere.
    """
    squared = (prediction.float() - target.float()).square()
    if emphasis is not None:
        squared = squared * emphasis[:, None]
    return squared.mean(dim=(1, 2, 3)) * weights
