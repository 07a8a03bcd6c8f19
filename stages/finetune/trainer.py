"""One optimiser step of fine-tuning, and the held-out loss; no files, no choice of model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel
from stages.components.diffusion.grounding import WatchedAttention
from stages.finetune.adapters.lora import AdaptedModel
from stages.finetune.averaging import AdapterAverage, judged_weights
from stages.finetune.checks import REMEDY
from stages.finetune.loss import compute_losses
from stages.finetune.optimizers import clip_gradients, learning_rates, set_learning_rates
from stages.finetune.training_set import Batch, TrainingSet, draw_held_out, draw_step, split_batch

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
