"""What the tests of evaluate run on: slices, arms and networks that cost nothing."""

import dataclasses
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import registry
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
from pipeline.settings import EvaluateConfig
from stages.evaluate import stage as evaluate
from tests.fabricate import plugins

LABELS = ("notumor", "glioma")
BASE = PluginConfig(name="blur")
FEATURES = (PluginConfig(name="blocks"),)
SIZE = 16


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


@contextmanager
def stand_ins():
    """Put parts that cost nothing beside the networks: the features `blocks`, the VAE of `blur`."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for package, name in ((registry.FEATURES, "blocks"), (registry.BASE_MODELS, "blur")):
            stack.enter_context(plugins.added(package, name, Path(folder)))
        yield


CONFIG = EvaluateConfig(
    features=FEATURES,
    num_bootstrap=40,
    num_permutations=19,
    metrics=("kid", "fid"),
    memorisation=False,
    base_models={"tiny_sd15": BASE},
)
FULL = EvaluateConfig(
    features=FEATURES,
    num_bootstrap=20,
    num_permutations=19,
    max_images=24,
    base_models={"tiny_sd15": BASE},
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
