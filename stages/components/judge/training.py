"""Training of a judge: slices with masks, varied far beyond themselves, Dice and cross-entropy.

Loss: mean Dice over slices with a tumour, binary cross-entropy over all pixels and over slices (a
tumour or none), cross-entropy of plane, region, side and shape. Slices are mirrored, turned,
scaled, shifted, blurred, made brighter or darker and noisier, since a judge must read generated
slices, which are softer than any it was trained on. Everything random is drawn from (seed, step),
so a killed training goes on to the same weights.

Source: Milletari et al., "V-Net", 3DV 2016, for the Dice loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contracts import TumorReport
from pipeline.errors import TrainingError
from stages.components.judge.network import SIDES, Judge, JudgeConfig, JudgeNet, peak_logit
from stages.components.judge.reading import read_images
from stages.components.networks.training import Losses, describe, fit
from stages.components.statistics.proportions import choose_even_cut
from stages.components.tumor_report.words import ORIENTATIONS

MAX_TURN_DEG = 12.0
SCALES = (0.85, 1.15)
MAX_SHIFT = 0.06  # of the side
GAINS, GAMMAS = (0.8, 1.2), (0.75, 1.35)
BLURS = (3, 5)  # px, window of the mean that a slice is mixed with
MAX_NOISE = 0.04  # standard deviation, of the range [0, 1]
PRESENCE_WEIGHT, PLANE_WEIGHT, NAME_WEIGHT = 0.2, 0.2, 0.2
UNKNOWN = -1  # an orientation, region or shape that the source does not know


@dataclass(frozen=True)
class JudgeData:
    """Slices to learn from.

    Attributes:
        images: uint8 (n, h, w), as `preprocess` makes them.
        lesions: bool (n, h, w), the tumour (`scans.core_of`).
        orientation: int (n,), index into ORIENTATIONS, or UNKNOWN.
        region: int (n,), index into the judge's regions, or UNKNOWN.
        side: int (n,), index into `judge.SIDES`, or UNKNOWN.
        shape: int (n,), index into the judge's shapes, or UNKNOWN.
    """

    images: NDArray[np.uint8]
    lesions: NDArray[np.bool_]
    orientation: NDArray[np.int64]
    region: NDArray[np.int64]
    side: NDArray[np.int64]
    shape: NDArray[np.int64]

    @property
    def has_tumor(self) -> NDArray[np.bool_]:
        """Which slices show a tumour, (n,)."""
        return np.asarray(self.lesions.any(axis=(1, 2)), dtype=np.bool_)


@dataclass(frozen=True)
class JudgeTraining:
    """Optimisation settings; every count is in optimiser steps.

    Attributes:
        bfloat16: convolutions in it, weights and losses in float32. With AMX, of an Intel Xeon, a
            step takes 0.6 of the time; a CPU that has to emulate it is slower.
    """

    seed: int = 5
    steps: int = 6000
    batch_size: int = 12
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    weight_decay: float = 1e-3
    max_grad_norm: float = 1.0
    checkpoint_every: int = 100
    validate_every: int = 500
    bfloat16: bool = False


def augment(
    images: Tensor, lesions: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
    """Vary slices, each in its own way, and their masks along.

    Args:
        images: float32 (n, 1, h, w) in [0, 1].
        lesions: float32 (n, 1, h, w), 0 or 1.
        rng: the only source of chance.

    Returns:
        Images and masks of the same shapes and ranges, and which of them are mirrored, (n,).
    """
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        values = rng.uniform(low, high, count).astype(np.float32)
        return torch.from_numpy(values)[:, None, None, None]

    turn = np.deg2rad(rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG, count))
    scale, mirror = rng.uniform(*SCALES, count), rng.choice([-1.0, 1.0], count)
    across, down = 2 * rng.uniform(-MAX_SHIFT, MAX_SHIFT, (2, count))  # the grid spans [-1, 1]
    cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
    rows = [[mirror * cosine, -sine, across], [mirror * sine, cosine, down]]
    theta = torch.from_numpy(np.asarray(rows, dtype=np.float32).transpose(2, 0, 1))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(torch.cat([images, lesions], dim=1), grid, align_corners=False)
    shown, marked = moved[:, :1].clamp(0, 1), (moved[:, 1:] > 0.5).float()
    window = int(rng.choice(BLURS))
    soft = F.avg_pool2d(shown, window, stride=1, padding=window // 2)
    shown = shown.lerp(soft, draw(-0.8, 1.0).clamp_min(0))  # nearly half of them stay sharp
    shown = draw(*GAINS) * shown ** draw(*GAMMAS)
    noise = torch.from_numpy(rng.standard_normal(tuple(shown.shape), dtype=np.float32))
    return (shown + draw(0, MAX_NOISE) * noise).clamp(0, 1), marked, mirror < 0


def mirror_sides(side: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Swap left and right, the first two of `judge.SIDES`, where a slice is mirrored; (n,).

    >>> mirror_sides(np.array([0, 1, 2, -1, 0]), np.array([True, True, True, True, False])).tolist()
    [1, 0, 2, -1, 0]
    """
    swapped = np.where((side == 0) | (side == 1), 1 - side, side)
    return np.where(mirrored, swapped, side)


def dice_loss(logits: Tensor, lesions: Tensor) -> Tensor:
    """Return 1 - Dice, a mean over the slices with a tumour; 0 without such slices; (n, 1, h, w).

    Example:
        >>> marked = torch.eye(4)[None, None]
        >>> float(dice_loss(50 * (2 * marked - 1), marked))
        0.0
    """
    has_tumor = lesions.amax(dim=(1, 2, 3)) > 0
    if not bool(has_tumor.any()):
        return logits.sum() * 0
    predicted, true = logits[has_tumor].sigmoid(), lesions[has_tumor]
    both = 2 * (predicted * true).sum(dim=(1, 2, 3)) + 1
    return (1 - both / (predicted.sum(dim=(1, 2, 3)) + true.sum(dim=(1, 2, 3)) + 1)).mean()


def known_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy over the rows whose target is known; 0 without such rows."""
    known = target != UNKNOWN
    if not bool(known.any()):
        return logits.sum() * 0
    return F.cross_entropy(logits[known].float(), target[known])


def judge_loss(
    net: JudgeNet,
    images: Tensor,
    lesions: Tensor,
    orientation: Tensor,
    region: Tensor,
    side: Tensor,
    shape: Tensor,
) -> Tensor:
    """Return the loss of a batch: images (n, 1, h, w) in [-1, 1], lesions 0 or 1, targets (n,)."""
    seen = net(images)
    seen = replace(seen, lesion=seen.lesion.float())
    # They are read under half the truth, half the guess: what will be there when it judges.
    under = 0.5 * (lesions + seen.lesion.detach().sigmoid())
    named = net.name(seen, under)
    has_tumor = lesions.amax(dim=(1, 2, 3))
    loss: Tensor = (
        dice_loss(seen.lesion, lesions)
        + F.binary_cross_entropy_with_logits(seen.lesion, lesions)
        + PRESENCE_WEIGHT * F.binary_cross_entropy_with_logits(peak_logit(seen.lesion), has_tumor)
        + PLANE_WEIGHT * known_loss(seen.orientation, orientation)
        + NAME_WEIGHT * known_loss(named.region, region)
        + NAME_WEIGHT * known_loss(named.side, side)
        + NAME_WEIGHT * known_loss(named.shape, shape)
    )
    return loss


def batch_loss(
    net: JudgeNet,
    data: JudgeData,
    picked: NDArray[np.int64],
    rng: np.random.Generator,
    device: str,
) -> Tensor:
    """Return the loss of the slices at `picked`, (n,), each varied by chance of `rng`."""
    images, lesions, mirrored = augment(
        torch.from_numpy(data.images[picked])[:, None].float() / 255,
        torch.from_numpy(data.lesions[picked])[:, None].float(),
        rng,
    )
    side = mirror_sides(data.side[picked], mirrored)
    targets = (data.orientation[picked], data.region[picked], side, data.shape[picked])
    return judge_loss(
        net,
        (2 * images - 1).to(device),
        lesions.to(device),
        *(torch.from_numpy(target).to(device) for target in targets),
    )


@torch.no_grad()
def held_out_loss(net: JudgeNet, data: JudgeData, settings: JudgeTraining, device: str) -> float:
    """Return the mean loss of whole batches of other subjects' slices, varied as in training.

    Every call draws alike, and the two losses differ by the subjects alone: apart, the judge
    over-fits; both high, it is too small or trained too briefly.
    """
    rng = np.random.default_rng([settings.seed, 2**31])  # a stream that no step draws from
    size = min(settings.batch_size, len(data.images))
    order = rng.permutation(len(data.images))
    batches = order[: len(order) // size * size].reshape(-1, size)
    net.eval()
    losses = [batch_loss(net, data, picked, rng, device).item() for picked in batches]
    net.train()
    return float(np.mean(losses))


def train(
    data: JudgeData,
    held_out: JudgeData | None,
    config: JudgeConfig,
    folder: Path,
    settings: JudgeTraining,
    device: str,
    progress: Callable[[str], None],
) -> Judge:
    """Train a judge, or go on where the checkpoint in `folder` stands; not yet calibrated.

    The loss on slices of `held_out` is told now and then; it changes nothing.

    Raises:
        TrainingError: No slice has a tumour, the loss is not finite, or the checkpoint misfits.
    """
    if not data.has_tumor.any():
        raise TrainingError(
            f"none of {len(data.images)} slices has a tumour in its mask, so a judge would learn "
            "nothing; add slices with masks"
        )
    torch.manual_seed(settings.seed)
    net = JudgeNet(config).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = len(data.images)

    def compute(step: int, rng: np.random.Generator) -> Losses:
        picked = rng.choice(count, settings.batch_size, replace=count < settings.batch_size)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.bfloat16):
            loss = batch_loss(net, data, picked, rng, device)
        return Losses(loss, {"loss": loss})

    def validate(step: int) -> None:
        is_due = (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps
        if held_out is not None and is_due:
            other = held_out_loss(net, held_out, settings, device)
            progress(f"judge: step {step + 1} of {settings.steps}, held-out loss {other:.4f}")

    fit(
        {"model": net},
        compute,
        settings,
        name="judge",
        checkpoint=folder / "judge.ckpt",
        architecture=describe(asdict(config)),
        progress=progress,
        after_step=validate,
    )
    return Judge(net, config)


def calibrate(judge: Judge, held_out: JudgeData) -> Judge:
    """Choose from which confidence on there is a tumour: sensitivity and specificity are equal.

    A judge that misses as many tumours as it invents neither flatters nor belittles an arm. On
    slices of neither training nor test. Without slices of both kinds it stays as it is.
    """
    surest = np.array([reading.confidence for reading in read_images(judge, held_out.images)])
    cut = choose_even_cut(surest, held_out.has_tumor)
    if cut is None:
        return judge
    return Judge(judge.net, replace(judge.config, least_confidence=cut))


def build_data(
    images: NDArray[np.uint8],
    lesions: NDArray[np.bool_],
    reports: Sequence[TumorReport],
    config: JudgeConfig,
) -> JudgeData:
    """Number the words of the truth, by their place among the judge's own."""
    return JudgeData(
        images=images,
        lesions=lesions,
        orientation=number([report.orientation for report in reports], ORIENTATIONS),
        region=number([report.location for report in reports], config.regions),
        side=number([report.side for report in reports], SIDES),
        shape=number([report.shape for report in reports], config.shapes),
    )


def config_for(reports: Sequence[TumorReport], image_size: int) -> JudgeConfig:
    """Lay out a judge that knows the regions and shapes of some truth, in alphabetical order.

    >>> told = [TumorReport(tumor=True, location=name) for name in ("falx", "convexity", None)]
    >>> config_for(told, 128).regions
    ('convexity', 'falx')
    """
    return JudgeConfig(
        image_size=image_size,
        regions=tuple(sorted({report.location for report in reports if report.location})),
        shapes=tuple(sorted({report.shape for report in reports if report.shape})),
    )


def number(names: Sequence[str | None], values: Sequence[str]) -> NDArray[np.int64]:
    """Number names by their place in `values`; UNKNOWN where it has none.

    >>> number(["coronal", None, "unknown"], ("axial", "coronal")).tolist()
    [1, -1, -1]
    """
    places = {value: place for place, value in enumerate(values)}
    return np.array([places.get(name or "", UNKNOWN) for name in names], dtype=np.int64)
