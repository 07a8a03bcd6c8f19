"""What tests of the judge look at: bright blobs in grey discs, and a judge that costs nothing."""

from dataclasses import replace

import numpy as np
import torch

from pipeline.contracts import TumorReport
from stages.components.judge.network import JudgeConfig, Named, Sight
from stages.components.judge.training import JudgeTraining, build_data

SIZE = 32
TINY = JudgeConfig(
    image_size=SIZE,
    regions=("falx", "thalamus"),
    shapes=("oval", "round"),
    widths=(8, 8, 16, 16),
)
SHORT = JudgeTraining(
    steps=80, batch_size=8, learning_rate=5e-3, warmup_steps=5, checkpoint_every=20
)
LEVELS = {"axial": 80, "coronal": 110, "sagittal": 140}  # grey value of a head, by its plane


def disc(row, column, radius, size=SIZE):
    """A filled circle, bool (size, size)."""
    rows, columns = np.ogrid[:size, :size]
    found: np.ndarray = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return found


def picture(side=None, plane="axial"):
    """A head, with a blob on one side of the image; uint8 (size, size), and the blob."""
    image = np.where(disc(16, 15.5, 14), LEVELS[plane], 0)
    blob = np.zeros((SIZE, SIZE), bool)
    if side is not None:
        blob = disc(16, {"left": 9, "right": 22, "midline": 15.5}[side], 3)
    return np.where(blob, 250, image).astype(np.uint8), blob


def make_data(count, seed=0):
    """Heads with noise; two of three have a blob, whose region is that of its half."""
    rng = np.random.default_rng(seed)
    images, lesions, reports = [], [], []
    for number in range(count):
        image, blob = picture()
        if number % 3:
            row, column = rng.uniform(9, 23, 2)
            blob = disc(row, column, rng.uniform(2.5, 4))
            image = np.where(blob, 220, image)
        noisy = image + rng.normal(0, 6, image.shape)
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
        lesions.append(blob)
        left = blob.any() and np.nonzero(blob)[1].mean() < 15.5
        reports.append(
            TumorReport(
                tumor=bool(blob.any()),
                side=("left" if left else "right") if blob.any() else None,
                location=("falx" if left else "thalamus") if blob.any() else None,
                shape="round" if blob.any() else None,
                orientation="axial",
            )
        )
    return build_data(np.stack(images), np.stack(lesions), reports, TINY)


def without_tumors(data):
    return replace(data, lesions=np.zeros_like(data.lesions))


class Analytic:
    """A judge that marks what is bright and reads plane and side off `picture`'s own code."""

    device = torch.device("cpu")
    bright = 5.0  # logit of what is bright

    def __init__(self, regions=("frontal lobe",)):
        self.config = JudgeConfig(image_size=SIZE, regions=regions, shapes=("round",))

    def look(self, images):
        gray = (images[:, :1] + 1) * 127.5
        nearest = torch.tensor(list(LEVELS.values())) - gray[:, 0, 16, 3][:, None]
        lesion = torch.where(gray > 200, self.bright, -5.0)
        return Sight(lesion, -nearest.abs(), gray, gray, gray)

    def name(self, seen, mirrored, lesion):
        columns = (lesion * torch.arange(SIZE)).sum((1, 2, 3)) / lesion.sum((1, 2, 3)).clamp_min(1)
        region = self.config.regions[0] if self.config.regions else None
        return [Named(region, "left" if c < 15.5 else "right", "round") for c in columns.tolist()]
