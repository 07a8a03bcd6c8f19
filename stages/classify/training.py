"""Train a classifier on slices in one phase or several, and choose its state on validation.

AdamW with a linear warm-up to a constant rate, cross-entropy, gradient clipping: as the poster has
it. Images stay in memory as one channel of uint8 and become float32 in [-1, 1], three equal
channels, a batch at a time: colour cannot tell synthetic from real.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from stages.classify.augmentation import augment
from stages.components.imaging.pixels import pad_to_square, read_image, resize, to_float

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
    """Slices and the number of each one's class, (n,)."""

    images: GrayBatch
    targets: NDArray[np.intp]


@dataclass(frozen=True)
class TrainingPhase:
    """A stretch of training on one set of slices."""

    data: LabelledImages
    num_steps: int
    is_augmented: bool = False


@dataclass(frozen=True)
class LossCurve:
    """Losses of a training run at its validations, and which state is kept.

    That of the lowest loss on validation, or the last one where validation may not choose.
    """

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]  # mean since the validation before
    val_loss: tuple[float, ...]
    earliest: int = 0  # states before this step may not be chosen: a phase was still to come
    is_chosen: bool = True  # by validation

    @property
    def chosen_step(self) -> int:
        """The step whose state was kept; the earliest of equals."""
        if not self.is_chosen:
            return self.steps[-1]
        losses = zip(self.val_loss, self.steps, strict=True)
        return min((loss, step) for loss, step in losses if step > self.earliest)[1]


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Name a state by the SHA-256 of its names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ChosenNetwork:
    """A network in its chosen state, that state's name, and its view of the validation slices."""

    network: nn.Module
    curve: LossCurve
    state_sha256: str
    val_probability: NDArray[np.float64]  # (n, class)


def read_images(paths: Sequence[Path], size_px: int) -> GrayBatch:
    """Read slices as one channel, padded to a square and resized: uint8 (n, size_px, size_px).

    Raises:
        DataError: An image is missing or damaged.
    """
    images = np.empty((len(paths), size_px, size_px), dtype=np.uint8)
    for row, path in enumerate(paths):
        images[row] = resize(pad_to_square(read_image(path)), size_px)
    return images


def to_input(images: GrayBatch, device: str) -> Tensor:
    """Turn uint8 (n, size, size) into float32 (n, 3, size, size) in [-1, 1]."""
    pixels = torch.from_numpy(to_float(images)).to(device)
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
    phases: Sequence[TrainingPhase],
    val: LabelledImages,
    plan: TrainingPlan,
    is_chosen: bool,
    seed: int,
    device: str,
    progress: Callable[[str], None],
) -> ChosenNetwork:
    """Train a network and return it in the state that did best on validation, in eval mode.

    Without `is_chosen` validation is only watched, and the last state is returned. Of several
    phases, the states of the last one alone can be chosen. Weights, dropout, order of images and
    augmentation come from `seed` alone: torch's own generator is seeded inside a fork and left as
    it was.

    Raises:
        TrainingError: A set is empty or of one class, or the loss is not finite.
    """
    for name, part in (*(("train", phase.data) for phase in phases), ("val", val)):
        kinds = len(set(part.targets.tolist()))
        if kinds == 0 or (kinds < 2 and name == "train"):
            raise TrainingError(
                f"classify: {name} has {len(part.targets)} slices of {kinds} kinds, expected "
                "slices with and without a tumour; add the missing ones to the source"
            )
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = build().to(device).train()
        return _fit(network, phases, val, plan, is_chosen, seed, device, progress)


def _iter_batches(
    phases: Sequence[TrainingPhase], batch_size: int, seed: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the input and the targets of every step, phase after phase."""
    step = 0
    for number, phase in enumerate(phases):
        later = (number,) if number else ()
        data = phase.data
        batches = iter_batches(len(data.images), batch_size, derive_seed(seed, "order", *later))
        for _ in range(phase.num_steps):
            rows, step = next(batches), step + 1
            images = to_input(data.images[rows], device)
            if phase.is_augmented:
                images = augment(images, seed=derive_seed(seed, "augment", step))
            yield images, torch.from_numpy(data.targets[rows].astype(np.int64)).to(device)


def _fit(
    network: nn.Module,
    phases: Sequence[TrainingPhase],
    val: LabelledImages,
    plan: TrainingPlan,
    is_chosen: bool,
    seed: int,
    device: str,
    progress: Callable[[str], None],
) -> ChosenNetwork:
    """Run the steps and leave the network in its best state, or in its last one."""
    parameters = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, plan.warmup_steps))
    )
    num_steps = sum(phase.num_steps for phase in phases)
    earliest = num_steps - phases[-1].num_steps
    steps: list[int] = []
    train_losses: list[float] = []
    val_losses: list[float] = []
    recent: list[float] = []
    best: tuple[float, dict[str, Tensor], NDArray[np.float64]] | None = None
    batches = _iter_batches(phases, plan.batch_size, seed, device)
    for step, (images, targets) in enumerate(batches, start=1):
        loss = F.cross_entropy(network(images), targets)
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
        if step % plan.validate_every and step != num_steps:
            continue
        probability = predict(network, val.images, device)
        val_loss = compute_loss(probability, val.targets)
        if step > earliest and (best is None or val_loss < best[0] or not is_chosen):
            state = {key: value.detach().clone() for key, value in network.state_dict().items()}
            best = (val_loss, state, probability)
        steps.append(step)
        train_losses.append(float(np.mean(recent)))
        val_losses.append(val_loss)
        recent.clear()
        progress(f"step {step}: train {train_losses[-1]:.4f}, val {val_loss:.4f}")
    assert best is not None  # the last step is always validated
    network.load_state_dict(best[1])
    network.eval()
    curve = LossCurve(tuple(steps), tuple(train_losses), tuple(val_losses), earliest, is_chosen)
    return ChosenNetwork(network, curve, state_sha256(best[1]), best[2])


def predict(network: nn.Module, images: GrayBatch, device: str) -> NDArray[np.float64]:
    """Return the probability of each class for each slice, (n, class); the mode is kept."""
    was_training = network.training
    network.eval()
    parts: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(images), PREDICTION_BATCH):
            logits = network(to_input(images[start : start + PREDICTION_BATCH], device))
            parts.append(logits.double().softmax(dim=1).cpu().numpy())
    network.train(was_training)
    return np.concatenate(parts)


def compute_loss(probability: NDArray[np.float64], targets: NDArray[np.integer]) -> float:
    """Return the mean cross-entropy of probabilities (n, class), each held 1e-12 off 0 and 1."""
    right = probability[np.arange(len(targets)), targets.astype(np.intp)]
    return float(-np.log(np.clip(right, 1e-12, 1.0)).mean())
