"""Train a classifier on slices, choose its state on validation, judge test slices once.

AdamW with a linear warm-up to a constant rate, cross-entropy, gradient clipping: as the poster has
it. Images stay in memory as one channel of uint8 and become float32 in [-1, 1], three equal
channels, a batch at a time: colour cannot tell synthetic from real.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.seeding import derive_seed, numpy_rng
from stages.components import imaging

GrayBatch: TypeAlias = NDArray[np.uint8]  # (n, size, size) in [0, 255]
PREDICTION_BATCH = 64


@dataclass(frozen=True)
class TrainingPlan:
    """How to train; every count of steps is in optimiser steps."""

    batch_size: int
    max_steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    max_grad_norm: float
    validate_every: int


@dataclass(frozen=True)
class LabelledImages:
    """Slices and whether each shows a tumour."""

    images: GrayBatch
    is_tumor: NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """Losses of a training run at its validations; the chosen one has the lowest on validation."""

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]  # mean since the validation before
    val_loss: tuple[float, ...]

    @property
    def chosen_step(self) -> int:
        """The step whose state was kept; the earliest of equals."""
        return self.steps[int(np.argmin(self.val_loss))]


def read_images(paths: Sequence[Path], size_px: int) -> GrayBatch:
    """Read slices as one channel, padded to a square and resized: uint8 (n, size_px, size_px).

    Raises:
        DataError: An image is missing or damaged.
    """
    images = np.empty((len(paths), size_px, size_px), dtype=np.uint8)
    for row, path in enumerate(paths):
        images[row] = imaging.resize(imaging.pad_to_square(imaging.read_image(path)), size_px)
    return images


def to_input(images: GrayBatch, device: str) -> Tensor:
    """Turn uint8 (n, size, size) into float32 (n, 3, size, size) in [-1, 1]."""
    pixels = torch.from_numpy(imaging.to_float(images)).to(device)
    return pixels[:, None].expand(-1, 3, -1, -1)


def iter_batches(count: int, batch_size: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Yield rows without end: a new permutation each epoch, its last short batch left out."""
    size, epoch = min(batch_size, count), 0
    while True:
        order = numpy_rng(seed, "epoch", epoch).permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
        epoch += 1


def train(
    build: Callable[[], nn.Module],
    *,
    train: LabelledImages,
    val: LabelledImages,
    plan: TrainingPlan,
    seed: int,
    device: str,
    progress: Callable[[str], None],
) -> tuple[nn.Module, Curve]:
    """Train a network and return it in the state that did best on validation, in eval mode.

    Weights, dropout and order of images come from `seed` alone: torch's own generator is seeded
    inside a fork and left as it was.

    Raises:
        TrainingError: A set is empty or of one kind, or the loss is not finite.
    """
    for name, part in (("train", train), ("val", val)):
        kinds = len(set(part.is_tumor.tolist()))
        if kinds == 0 or (kinds < 2 and name == "train"):
            raise TrainingError(
                f"classify: {name} has {len(part.is_tumor)} slices of {kinds} kinds, expected "
                "slices with and without a tumour; add the missing ones to the source"
            )
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = build().to(device).train()
        return network, _fit(network, train, val, plan, seed, device, progress)


def _fit(
    network: nn.Module,
    train: LabelledImages,
    val: LabelledImages,
    plan: TrainingPlan,
    seed: int,
    device: str,
    progress: Callable[[str], None],
) -> Curve:
    """Run the steps and leave the network in its best state."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, plan.warmup_steps))
    )
    labels = torch.from_numpy(train.is_tumor.astype(np.int64)).to(device)
    batches = iter_batches(len(train.images), plan.batch_size, derive_seed(seed, "order"))
    steps: list[int] = []
    train_losses: list[float] = []
    val_losses: list[float] = []
    recent: list[float] = []
    best: dict[str, Tensor] = {}
    for step in range(1, plan.max_steps + 1):
        rows = next(batches)
        logits = network(to_input(train.images[rows], device))
        loss = F.cross_entropy(logits, labels[torch.from_numpy(rows).to(device)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        optimizer.step()
        scheduler.step()
        recent.append(float(loss.detach()))
        if not np.isfinite(recent[-1]):
            raise TrainingError(
                f"classify: the loss is {recent[-1]} at step {step}; lower learning_rate "
                f"{plan.learning_rate:g}"
            )
        if step % plan.validate_every and step != plan.max_steps:
            continue
        val_loss = compute_loss(predict(network, val.images, device), val.is_tumor)
        if not val_losses or val_loss < min(val_losses):
            best = {key: value.detach().clone() for key, value in network.state_dict().items()}
        steps.append(step)
        train_losses.append(float(np.mean(recent)))
        val_losses.append(val_loss)
        recent.clear()
        progress(f"step {step}: train {train_losses[-1]:.4f}, val {val_loss:.4f}")
    network.load_state_dict(best)
    network.eval()
    return Curve(tuple(steps), tuple(train_losses), tuple(val_losses))


def predict(network: nn.Module, images: GrayBatch, device: str) -> NDArray[np.float64]:
    """Return the probability of a tumour for each slice, (n,); the network's mode is kept."""
    was_training = network.training
    network.eval()
    parts: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(images), PREDICTION_BATCH):
            logits = network(to_input(images[start : start + PREDICTION_BATCH], device))
            parts.append(logits.double().softmax(dim=1)[:, 1].cpu().numpy())
    network.train(was_training)
    return np.concatenate([np.zeros(0), *parts])


def compute_loss(probability: NDArray[np.float64], is_tumor: NDArray[np.bool_]) -> float:
    """Return the mean cross-entropy of probabilities (n,), each held 1e-12 off 0 and 1."""
    right = np.where(is_tumor, probability, 1.0 - probability)
    return float(-np.log(np.clip(right, 1e-12, 1.0)).mean())
