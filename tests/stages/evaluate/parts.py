"""What the tests of evaluate run on: slices, arms and networks that cost nothing."""

import dataclasses
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    Context,
    PluginConfig,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import MissingWeightsError
from pipeline.settings import EvaluateConfig
from stages.components.features import extraction
from stages.evaluate import stage as evaluate

LABELS = ("notumor", "glioma")
BASE = PluginConfig(name="tiny_sd15")
LOAD_EXTRACTOR = extraction.load_extractor
SIZE = 16


class Blocks:
    """A network's stand-in: brightness of 4 x 4 blocks and its spread."""

    name, num_features, input_size, digest = "blocks", 17, SIZE, "blocks-1"

    def __call__(self, images):
        gray = images.astype(np.float32).mean(axis=3) / 64
        means = gray.reshape(len(images), 4, 4, 4, 4).mean(axis=(2, 4)).reshape(len(images), 16)
        return np.concatenate([means, gray.std(axis=(1, 2))[:, None]], axis=1)


class Blur(nn.Module):
    """A VAE's stand-in that loses detail."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, pixels):
        return SimpleNamespace(
            latent_dist=SimpleNamespace(mode=lambda: nn.functional.avg_pool2d(pixels, 2))
        )

    def decode(self, latents):
        return SimpleNamespace(sample=nn.functional.interpolate(latents, scale_factor=2))


def draw(rng, label, offset=0):
    """A smooth bright head, brighter with a tumour; `offset` is a fault of the generator."""
    image = rng.normal(100 + offset, 12, (SIZE, SIZE))
    image[4:12, 4:12] += 20 * rng.random()
    if label == "glioma":
        image[6:9, 6:9] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def plane(k):
    return ("axial", "coronal")[k % 2]


def write_slices(root, counts, leak=False, oriented=False):
    root.mkdir()
    records = []
    rng = np.random.default_rng(1)
    for split, count in counts.items():
        for label in LABELS:
            for k in range(count):
                name = f"{split}-{label}-{k}"
                Image.fromarray(draw(rng, label)).convert("RGB").save(root / f"{name}.png")
                group = f"{split}-{k // 2}" if not leak else f"g{k}"
                records.append(
                    SliceRecord(
                        slice_id=name,
                        subject_id=group,
                        group_id=group,
                        source="test",
                        split=split,
                        label=label,
                        orientation=plane(k // 4) if oriented else "unknown",
                        image_path=f"{name}.png",
                        original=name,
                        original_width_px=SIZE,
                        original_height_px=SIZE,
                    )
                )
    write_records(root / "records.jsonl", records)
    return Artifact(root, "p", SliceRecord, {})


def write_arm(root, offset, count=24, labels=LABELS, seed=2, base=BASE, copied=()):
    root.mkdir()
    rng = np.random.default_rng(seed)
    records = []
    for label in labels:
        for k in range(count):
            name = f"{label}-{k}"
            if k < len(copied):
                shutil.copy(copied[k], root / f"{name}.png")
            else:
                image = Image.fromarray(draw(rng, label, offset))
                image.convert("RGB").save(root / f"{name}.png")
            records.append(
                SyntheticRecord(
                    image_id=name,
                    image_path=f"{name}.png",
                    prompt=f"{label} {k % 3}",
                    requested=TumorReport(orientation=plane(k)),
                    label=label,
                    seed=0,
                    adapter_digest=None,
                )
            )
    write_records(root / "records.jsonl", records)
    return Artifact(root, root.name, SyntheticRecord, {"config": {"base_model": base.model_dump()}})


def load_blocks(plugin, device):
    if plugin.name == "gone":
        raise MissingWeightsError("extractors/gone: no weights. Download them")
    return Blocks()


@contextmanager
def stand_ins():
    """Put `Blocks` and `Blur` in the networks' places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "load_extractor", load_blocks)
        patch.setattr(evaluate, "load_vae", lambda plugin, device: Blur())
        yield


CONFIG = EvaluateConfig(
    num_bootstrap=40,
    num_permutations=19,
    metrics=("kid", "fid"),
    memorisation=False,
    base_models={"tiny_sd15": BASE},
)
FULL = EvaluateConfig(
    num_bootstrap=20, num_permutations=19, max_images=24, base_models={"tiny_sd15": BASE}
)


def run(tmp_path, inputs, config=CONFIG, seed=0, name="out"):
    root = tmp_path / name
    root.mkdir()
    output = ArtifactWriter(root, ScoreRecord)
    context = Context("test", seed, "cpu", "float32", 1, tmp_path, lambda line: None)
    evaluate.run(config, inputs, output, context)
    scores = list(Artifact(root, "e", ScoreRecord, {}).records())
    return {(s.arm, s.metric, s.group): s for s in scores}, output


def reverse(artifact, root):
    """Copy an artifact with its records in the opposite order."""
    shutil.copytree(artifact.root, root)
    path = root / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    return dataclasses.replace(artifact, root=root)
