"""Trainer: one optimiser step, the held-out loss and the pace; no files, no choice of model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError, TrainingError
from pipeline.files import disk_explained
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel
from stages.components.diffusion.grounding import WatchedAttention
from stages.finetune.averaging import Trained
from stages.finetune.checks import REMEDY
from stages.finetune.log import Pace
from stages.finetune.loss import compute_losses
from stages.finetune.memory import GIB
from stages.finetune.optimizers import (
    clip_gradients,
    effective_rate,
    learning_rates,
    set_learning_rates,
)
from stages.finetune.training_set import Batch, TrainingSet, draw_held_out, draw_step, split_batch

HELD_OUT_BATCH = 16  # whatever `batch_size` is, so that arms can be compared


@dataclass(frozen=True)
class Trainer:
    """All that one optimiser step needs; `base` holds the networks as accelerate prepared them."""

    config: FinetuneConfig
    base: BaseModel
    trained: Trained
    optimizer: Any  # accelerate's wrapper: it steps only when gradients are in step
    accelerator: Any
    device: torch.device
    dtype: torch.dtype
    train: TrainingSet
    held_out: TrainingSet
    seed: int
    watched: list[WatchedAttention]  # of finetune.grounding_weight; empty without it

    @property
    def networks(self) -> list[nn.Module]:
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
        return [p for model in self.trained.models for p in model.parameters()]

    @property
    def effective_batch(self) -> int:
        """Slices per optimiser step: batch x accumulation x processes."""
        processes = int(self.accelerator.num_processes)
        return self.config.batch_size * self.config.gradient_accumulation_steps * processes

    @property
    def num_timesteps(self) -> int:
        """Length of the diffusion, 1000 for both families."""
        return int(self.base.noise_scheduler.config.num_train_timesteps)

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group, as it is now."""
        return effective_rate(self.trained.optimizer)

    def compute_losses(self, data: TrainingSet, batch: Batch) -> Tensor:
        """Return the weighted loss of each sample of a micro-batch, float32 (batch,)."""
        return compute_losses(
            self.base, self.config, data, batch, dtype=self.dtype, watched=self.watched
        )

    def optimise(self, step: int) -> tuple[float, float]:
        """Take one optimiser step.

        Returns:
            The mean loss over the step's samples, and the gradient norm before clipping.

        Raises:
            TrainingError: Loss or gradient is not finite; the weights are left as they were.
        """
        config, accelerator = self.config, self.accelerator
        micro_batches = split_batch(
            draw_step(
                self.train,
                seed=self.seed,
                step=step,
                effective_batch=self.effective_batch,
                num_timesteps=self.num_timesteps,
                caption_dropout=config.caption_dropout,
                is_stratified=config.timestep_sampling == "stratified",
            ),
            config.batch_size,
        )
        total, grad_norm = torch.zeros((), device=self.device), math.nan
        for batch in micro_batches[accelerator.process_index :: accelerator.num_processes]:
            with accelerator.accumulate(*self.networks):
                loss = self.compute_losses(self.train, batch).mean()
                accelerator.backward(loss)  # divides by the number of accumulated micro-batches
                total += loss.detach() / config.gradient_accumulation_steps
                if accelerator.sync_gradients:
                    grad_norm = clip_gradients(self.parameters, config.max_grad_norm)
                    require_finite(step, float(total), grad_norm)
                    set_learning_rates(self.optimizer, learning_rates(config, step))
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.trained.average is not None:
            self.trained.average.update(step)
        return float(accelerator.reduce(total, "mean")), grad_norm

    def compute_held_out_loss(self) -> float:
        """Return the mean weighted loss on held-out slices, with the same noise every time.

        Of the weights that a user would get: averaged ones where an average is kept.
        """
        batch = draw_held_out(self.held_out, seed=self.seed, num_timesteps=self.num_timesteps)
        parts = split_batch(batch, HELD_OUT_BATCH)
        with torch.no_grad(), self.trained.as_exported():
            losses = [self.compute_losses(self.held_out, part) for part in parts]
        return float(torch.cat(losses).double().mean())

    def measure_pace(self, steps: int, seconds: float) -> Pace:
        """Say how fast this process has trained so far, over all processes, and its memory."""
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated(self.device)
        else:
            used = psutil.Process().memory_info().rss
        return Pace(steps * self.effective_batch / max(seconds, 1e-9), used / GIB)


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


@contextmanager
def explained(step: int) -> Iterator[None]:
    """Turn a full disk and too little memory into errors that say where and what to do.

    Raises:
        DiskError: Names the step; the states before it are kept.
        TrainingError: Likewise.
    """
    try:
        with disk_explained(f"step {step}"):
            yield
    except PipelineError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        if "out of memory" in cause or "can't allocate memory" in cause:
            raise TrainingError(
                f"step {step}: memory does not suffice ({cause.splitlines()[0]}). The last "
                f"checkpoint is kept; {REMEDY}, then rerun."
            ) from error
        raise
