"""One optimiser step of fine-tuning, and the held-out loss; no files, no choice of model."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components.averaging import AdapterAverage, judged_weights
from stages.components.diffusion.base_model import BaseModel, predict, time_ids
from stages.components.diffusion.grounding import WatchedAttention, grounding_losses, place_tokens
from stages.components.lora import AdaptedModel
from stages.components.loss_weighting import loss_weights, signal_to_noise
from stages.components.optimizers import set_learning_rates
from stages.components.training import clip_gradients, learning_rate, sample_losses, training_target
from stages.components.training_checks import REMEDY
from stages.components.training_set import Batch, TrainingSet, draw_held_out, draw_step, split_batch

HELD_OUT_BATCH = 16  # whatever `batch_size` is, so that arms can be compared


@dataclass(frozen=True)
class Trainer:
    """All that one optimiser step needs; `base` holds the networks as accelerate prepared them."""

    config: FinetuneConfig
    base: BaseModel
    models: list[AdaptedModel]
    optimizer: Any  # accelerate's wrapper: it steps only when gradients are in step
    accelerator: Any
    device: torch.device
    dtype: torch.dtype
    train: TrainingSet
    held_out: TrainingSet
    seed: int
    average: AdapterAverage | None
    watched: list[WatchedAttention]  # of finetune.grounding_weight; empty without it

    @property
    def trained(self) -> list[nn.Module]:
        """The networks whose gradients accelerate must hold back while accumulating: all of them.

        Naming the UNet alone would reduce the text encoders' gradients on every micro-batch.
        """
        return [
            *([] if self.config.is_inversion else [self.base.unet]),
            *(self.base.text_encoders if self.config.trains_text else []),
        ]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All trained tensors; listed once, since to walk the networks takes 2 % of a tiny step."""
        return [p for model in self.models for p in model.parameters()]

    @property
    def own_optimizer(self) -> Any:
        """The optimiser inside accelerate's wrapper."""
        return self.optimizer.optimizer

    @property
    def effective_batch(self) -> int:
        """Slices per optimiser step: batch x accumulation x processes."""
        processes = int(self.accelerator.num_processes)
        return self.config.batch_size * self.config.gradient_accumulation_steps * processes

    @property
    def num_timesteps(self) -> int:
        """Length of the diffusion, 1000 for both families."""
        return int(self.base.noise_scheduler.config.num_train_timesteps)

    def compute_losses(self, data: TrainingSet, batch: Batch) -> Tensor:
        """Return the weighted loss of each sample of a micro-batch, float32 (batch,)."""
        return compute_losses(
            self.base, self.config, data, batch, dtype=self.dtype, watched=self.watched
        )


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


def optimise(trainer: Trainer, step: int) -> tuple[float, float]:
    """Take one optimiser step.

    Returns:
        The mean loss over the step's samples, and the gradient norm before clipping.

    Raises:
        TrainingError: Loss or gradient is not finite; the weights are left as they were.
    """
    config, accelerator = trainer.config, trainer.accelerator
    micro_batches = split_batch(
        draw_step(
            trainer.train,
            seed=trainer.seed,
            step=step,
            effective_batch=trainer.effective_batch,
            num_timesteps=trainer.num_timesteps,
            caption_dropout=config.caption_dropout,
            is_stratified=config.timestep_sampling == "stratified",
        ),
        config.batch_size,
    )
    total, grad_norm = torch.zeros((), device=trainer.device), math.nan
    for batch in micro_batches[accelerator.process_index :: accelerator.num_processes]:
        with accelerator.accumulate(*trainer.trained):
            loss = trainer.compute_losses(trainer.train, batch).mean()
            accelerator.backward(loss)  # divides by the number of accumulated micro-batches
            total += loss.detach() / config.gradient_accumulation_steps
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(trainer.parameters, config.max_grad_norm)
                require_finite(step, float(total), grad_norm)
                set_learning_rates(trainer.optimizer, learning_rates(config, step))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    if trainer.average is not None:
        trainer.average.update(step)
    return float(accelerator.reduce(total, "mean")), grad_norm


def require_finite(step: int, loss: float, grad_norm: float) -> None:
    """Stop before NaN or infinity reaches the weights.

    Raises:
        TrainingError: Names the step.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"step {step}: loss {loss} and gradient norm {grad_norm} are not both finite. The last "
            "checkpoint is kept; lower finetune.learning_rate or use float32, then rerun."
        )


def learning_rates(config: FinetuneConfig, step: int) -> list[float]:
    """Return the rate of each parameter group in a step: UNet, then text encoders, as trained.

    Set by hand: accelerate would step a scheduler once per process, and scripts that scale its
    counts by the accumulation never leave the warm-up.
    """
    return [
        learning_rate(
            step,
            peak=peak,
            warmup_steps=config.warmup_steps,
            max_steps=config.max_steps,
            schedule=config.lr_schedule,
        )
        for peak in peak_rates(config)
    ]


def peak_rates(config: FinetuneConfig) -> list[float]:
    """Return the highest rate of each parameter group."""
    if config.is_inversion:
        return [config.inversion.learning_rate]
    rates = [config.learning_rate]
    if config.train_text_encoder:
        rates.append(config.text_encoder_learning_rate or config.learning_rate)
    return rates


def parameter_groups(
    models: Sequence[AdaptedModel], config: FinetuneConfig
) -> list[tuple[list[nn.Parameter], float]]:
    """Pair trained tensors with their peak rates: UNet, then all text encoders together."""
    unet = [p for model in models if model.prefix == "unet" for p in model.parameters()]
    encoders = [p for model in models if model.prefix != "unet" for p in model.parameters()]
    groups = [group for group in (unet, encoders) if group]
    return list(zip(groups, peak_rates(config), strict=True))


def compute_held_out_loss(trainer: Trainer) -> float:
    """Return the mean weighted loss on held-out slices, with the same noise every time.

    Of the weights that a user would get: averaged ones where an average is kept.
    """
    batch = draw_held_out(trainer.held_out, seed=trainer.seed, num_timesteps=trainer.num_timesteps)
    parts = split_batch(batch, HELD_OUT_BATCH)
    with torch.no_grad(), judged_weights(trainer.models, trainer.own_optimizer, trainer.average):
        losses = [trainer.compute_losses(trainer.held_out, part) for part in parts]
    return float(torch.cat(losses).double().mean())


@contextmanager
def explained(step: int) -> Iterator[None]:
    """Turn a full disk and too little memory into errors that say where and what to do.

    Raises:
        TrainingError: Names the step; the checkpoints before it are kept.
    """
    try:
        yield
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        if "No space left on device" in cause:
            raise TrainingError(
                f"step {step}: the disk is full ({cause}). The checkpoint before is kept; free "
                "some space, then rerun to go on from it."
            ) from error
        if "out of memory" in cause or "can't allocate memory" in cause:
            raise TrainingError(
                f"step {step}: memory does not suffice ({cause.splitlines()[0]}). The last "
                f"checkpoint is kept; {REMEDY}, then rerun."
            ) from error
        raise
