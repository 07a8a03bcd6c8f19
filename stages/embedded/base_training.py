"""The tiny base models: UNet and text encoder(s), trained together on tumour-free phantoms.

First on healthy heads, then on those and on heads with other findings (`corpora.findings`),
from which a base model has its words for places, sides, sizes and shapes. `tiny_sdxl` then goes on
with both kinds whole and stripped to the brain (`base_wide`).

`tiny_sd15` has SD 1.5's layout (one CLIP text model, attention from the first block on);
`tiny_sdxl` has SDXL's (two text encoders, pooled and time-id conditioning, no attention in the
first block). Both predict v: at this size and this little training, errors of an epsilon prediction
at high noise blow up into blotches.
"""

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.components.diffusion.grounding import grounding_losses, watch_attention
from stages.components.networks import training
from stages.components.networks.training import Losses, fit, learning_rate
from stages.components.networks.weights import Family
from stages.embedded.vae import to_pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

Networks = tuple["UNet2DConditionModel", "list[CLIPTextModel]"]
TEXT_WIDTH = 96  # of the first text encoder
TEXT_WIDTH_2 = 128  # of SDXL's second, and of its pooled projection
TIME_ID_WIDTH = 32
HEALTHY_STEPS: dict[Family, int] = {"sd": 3000, "sdxl": 7000}
FINDINGS_STEPS: dict[Family, int] = {"sd": 1500, "sdxl": 3000}
FOCUS_SNR = (0.1, 5.0)  # where generated slices were measured to lose precision and recall


@dataclass(frozen=True)
class BaseTraining:
    """Optimisation settings; every count is in optimiser steps.

    Both phases have a warm-up and a cosine of the learning rate of their own. In the second a slice
    shows a finding with probability `findings_share`, the error there counts `findings_weight`
    times, and `grounding_weight` times the grounding loss is added. Timesteps with an SNR within
    `FOCUS_SNR` are drawn `focus` times as often as others.
    """

    family: Family
    healthy_steps: int
    findings_steps: int
    findings_share: float = 0.7
    findings_weight: float = 4.0
    grounding_weight: float = 0.3
    focus: float = 1.0
    seed: int = 2
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    findings_learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    caption_dropout: float = 0.1
    ema_decay: float = 0.999
    checkpoint_every: int = 100

    @property
    def steps(self) -> int:
        """Steps of both phases."""
        return self.healthy_steps + self.findings_steps


def scheduler_config() -> dict[str, Any]:
    """Return the noise schedule: SD's betas with zero terminal SNR, v-prediction, trailing steps.

    At SD's own last step the mean of a 16 x 16 latent still shows through the noise, so a sampler
    that starts from pure noise would make every head of average size and brightness.
    """
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "steps_offset": 1,
    }


def new_unet(family: Family, channels: int, size: int) -> "UNet2DConditionModel":
    """Build the UNet with random weights; `channels` and `size` are the latents'."""
    from diffusers import UNet2DConditionModel

    shared: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 16,
    }
    if family == "sd":
        return UNet2DConditionModel(
            **shared,
            block_out_channels=(32, 64, 96),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(1, 2, 3),  # diffusers' name for the number of heads
            cross_attention_dim=TEXT_WIDTH,
        )
    return UNet2DConditionModel(
        **shared,
        # wide from the first block on: a latent carries detail from below its own size, and 48
        # channels there cost half as many steps again for the same loss
        block_out_channels=(96, 112, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 4, 4),
        cross_attention_dim=TEXT_WIDTH + TEXT_WIDTH_2,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=TEXT_WIDTH_2 + 6 * TIME_ID_WIDTH,
    )


def new_text_encoders(family: Family, tokenizer: "CLIPTokenizer") -> "list[CLIPTextModel]":
    """Build one (sd) or two (sdxl) CLIP text models with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(width: int, layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    if family == "sd":
        return [CLIPTextModel(config(TEXT_WIDTH, 2))]
    return [
        CLIPTextModel(config(TEXT_WIDTH, 3)),
        CLIPTextModelWithProjection(config(TEXT_WIDTH_2, 3)),
    ]


@torch.no_grad()
def encode_images(vae: "AutoencoderKL", images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean and std, scaled: float32 (n, channel, h / 8, w / 8) each."""
    means, stds = [], []
    for start in range(0, len(images), 16):
        posterior = vae.encode(to_pixels(images[start : start + 16]).to(vae.device)).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
    scale = vae.config.scaling_factor
    return torch.cat(means) * scale, torch.cat(stds) * scale


@dataclass
class BaseTrainingSet:
    """Latents, and the captions that fit each.

    `mean`, `std`: float32 (n, channel, h, w). `choices`: int (n, k), rows of `captions`; which of
    the k wordings is used is drawn at every step. `places`: bool (captions, token), the words that
    name the place. `findings`: bool (n, 1, h, w), cells that show part of a finding; the first
    `num_healthy` slices have none.
    """

    mean: Tensor
    std: Tensor
    choices: NDArray[np.intp]
    captions: Sequence[str]
    places: Tensor
    findings: Tensor
    num_healthy: int


def describe(
    unet: "UNet2DConditionModel", encoders: "Sequence[CLIPTextModel]", tokenizer: "CLIPTokenizer"
) -> dict[str, Any]:
    """Say what a checkpoint's weights are of, the numbering of its tokens included."""
    return {
        "unet": training.describe(unet.config),
        "text": {
            str(number): training.describe(encoder.config.to_dict())
            for number, encoder in enumerate(encoders)
        },
        "vocabulary": hashlib.sha256(
            repr(sorted(tokenizer.get_vocab().items())).encode()
        ).hexdigest(),
    }


def draw_rows(
    data: BaseTrainingSet, settings: BaseTraining, step: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Draw a batch of slices: of healthy heads first, of both kinds later."""
    healthy = rng.integers(0, data.num_healthy, settings.batch_size)
    if step < settings.healthy_steps:
        return healthy
    others = rng.integers(data.num_healthy, len(data.mean), settings.batch_size)
    return np.where(rng.random(settings.batch_size) < settings.findings_share, others, healthy)


def draw_timesteps(
    settings: BaseTraining, alphas_cumprod: Tensor, rng: np.random.Generator
) -> Tensor:
    """Draw a batch of timesteps, int64 (batch,).

    They are stratified over the batch: the same mean as independent draws, less variance.
    """
    low, high = FOCUS_SNR
    snr = (alphas_cumprod / (1 - alphas_cumprod)).numpy()
    weight = np.where((snr >= low) & (snr <= high), settings.focus, 1.0)
    edges = np.cumsum(weight) / weight.sum()
    size = settings.batch_size
    spread = (np.arange(size) + rng.random(size)) / size
    return torch.from_numpy(np.searchsorted(edges[:-1], rng.permutation(spread), side="right"))


def rate_at(settings: BaseTraining, step: int) -> float:
    """Return the learning rate: each phase has a warm-up and a cosine of its own."""
    is_second = step >= settings.healthy_steps
    return learning_rate(
        step - settings.healthy_steps if is_second else step,
        peak=settings.findings_learning_rate if is_second else settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        steps=settings.findings_steps if is_second else settings.healthy_steps,
    )


def train(
    data: BaseTrainingSet,
    tokenizer: "CLIPTokenizer",
    image_size: int,
    folder: Path,
    settings: BaseTraining,
    device: str,
    progress: Callable[[str], None],
    start: Networks | None = None,
) -> Networks:
    """Train UNet and text encoder(s), or go on from the checkpoint; return the averaged weights.

    Without `start`, from random weights.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint does not fit these networks.
    """
    from diffusers import DDPMScheduler

    from stages.components.diffusion.base_model import (
        BaseModel,
        Conditioning,
        encode_prompts,
        predict,
        time_ids,
    )

    torch.manual_seed(settings.seed)
    unet, encoders = start or (
        new_unet(settings.family, data.mean.shape[1], data.mean.shape[2]),
        new_text_encoders(settings.family, tokenizer),
    )
    model = nn.ModuleDict({"unet": unet, "text": nn.ModuleList(encoders)}).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # faster on CPUs
    average = deepcopy(model).requires_grad_(False)
    base = BaseModel(
        family=settings.family,
        tokenizers=[tokenizer] * len(encoders),
        text_encoders=list(encoders),
        unet=unet,
        vae=None,
        noise_scheduler=DDPMScheduler.from_config(scheduler_config()),
        zeros_for_empty=settings.family == "sdxl",  # the pipelines' defaults
    )
    ids = time_ids(image_size, torch.zeros(settings.batch_size, 2, dtype=torch.int64)).to(device)
    captions = [*data.captions, ""]
    places = F.pad(data.places, (0, 0, 0, 1)).to(device)
    watched = watch_attention(unet)
    averages: list[Tensor] = list(average.parameters())
    weights: list[Tensor] = list(model.parameters())

    def compute(step: int, rng: np.random.Generator) -> Losses:
        picked = draw_rows(data, settings, step, rng)
        shape = (settings.batch_size, *data.mean.shape[1:])
        draw = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
        latents = (data.mean[picked] + data.std[picked] * draw).to(device)
        timesteps = draw_timesteps(settings, base.noise_scheduler.alphas_cumprod, rng).to(device)
        # each caption of the batch is encoded once
        rows = data.choices[picked, rng.integers(0, data.choices.shape[1])]
        rows[rng.random(settings.batch_size) < settings.caption_dropout] = len(data.captions)
        unique, inverse = np.unique(rows, return_inverse=True)
        once = encode_prompts(base, [captions[row] for row in unique])
        where = torch.from_numpy(inverse).to(device)
        conditioning = Conditioning(
            once.prompt_embeds[where], None if once.pooled is None else once.pooled[where]
        )
        noisy = base.noise_scheduler.add_noise(latents, noise, timesteps)
        target = base.noise_scheduler.get_velocity(latents, noise, timesteps)
        findings = data.findings[picked].to(device)
        weight = torch.where(findings, settings.findings_weight, 1.0)
        predicted = predict(base, noisy, timesteps, conditioning, ids)
        errors = F.mse_loss(predicted, target, reduction="none")
        loss = (weight * errors).mean() / weight.mean()
        strays = grounding_losses(watched, places[rows], findings[:, 0])
        misplaced = strays.sum() / (strays > 0).sum().clamp(min=1)
        return Losses(
            loss + settings.grounding_weight * misplaced, {"loss": loss, "grounding": misplaced}
        )

    @torch.no_grad()
    def move_average(step: int) -> None:
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    fit(
        {"model": model, "average": average},
        compute,
        settings,
        name=settings.family,
        checkpoint=folder / f"{settings.family}.ckpt",
        architecture=describe(unet, encoders, tokenizer),
        progress=progress,
        rate_at=lambda step: rate_at(settings, step),
        after_step=move_average,
    )
    average.eval()
    averaged_encoders = cast("nn.ModuleList", average["text"])
    return cast("UNet2DConditionModel", average["unet"]), [
        cast("CLIPTextModel", encoder) for encoder in averaged_encoders
    ]
