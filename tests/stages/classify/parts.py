"""What the tests of classify run on: slices with a bright square for a tumour, and a tiny ViT."""

import numpy as np
from PIL import Image

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
from pipeline.settings import ClassifyConfig
from stages.classify import stage as classify

METRICS = (
    "accuracy", "sensitivity", "specificity", "auroc", "auroc_within_contrast", "auprc", "ece",
    "brier",
)  # fmt: skip


LABELS = ("notumor", "glioma", "pituitary")


SIZE = 32


CONFIG = ClassifyConfig(
    model=PluginConfig(
        name="vit",
        settings={"patch_size": 8, "embed_dim": 16, "num_heads": 2, "fc_dim": 32, "dropout": 0.1},
    ),
    image_size=SIZE,
    batch_size=8,
    max_steps=120,
    learning_rate=5e-3,
    warmup_steps=5,
    validate_every=40,
)


SHORT = CONFIG.model_copy(update={"max_steps": 6, "validate_every": 2})


def draw(rng, label, is_faithful=True):
    image = rng.integers(0, 80, (SIZE, SIZE))
    if label != "notumor" and is_faithful:
        image[4:20, 4:20] = 220
    return image.astype(np.uint8)


def write_slices(root, counts):
    root.mkdir()
    rng = np.random.default_rng(1)
    records = []
    for split, count in counts.items():
        for label in LABELS:
            for k in range(count):
                name = f"{split}-{label}-{k}"
                Image.fromarray(draw(rng, label)).convert("RGB").save(root / f"{name}.png")
                records.append(
                    SliceRecord(
                        slice_id=name,
                        subject_id=f"{label}-{k}",
                        group_id=f"{split}-{label}-{k // 2}",
                        source=("clinic", "archive")[k % 2],
                        split=split,
                        label=label,
                        orientation=("axial", "sagittal")[k % 2],
                        modality=("t1", "flair", "unknown")[k % 3],
                        image_path=f"{name}.png",
                        original=name,
                        original_width_px=300 + k,
                        original_height_px=300,
                    )
                )
    write_records(root / "records.jsonl", records)
    return Artifact(root, "p", SliceRecord, {})


def write_arm(root, count=12, is_faithful=True, labels=LABELS):
    root.mkdir()
    rng = np.random.default_rng(2)
    records = []
    for label in labels:
        for k in range(count):
            name = f"{label}-{k}"
            image = Image.fromarray(draw(rng, label, is_faithful)).convert("RGB")
            image.save(root / f"{name}.png")
            records.append(
                SyntheticRecord(
                    image_id=name,
                    image_path=f"{name}.png",
                    prompt="",
                    requested=TumorReport(),
                    label=label,
                    seed=0,
                    adapter_digest=None,
                )
            )
    write_records(root / "records.jsonl", records)
    return Artifact(root, root.name, SyntheticRecord, {})


def counting(calls, config=SHORT, **settings):
    """Let the classifier `counting` (of `fabricate/parts`) note its calls."""
    model = PluginConfig(name="counting", settings={"calls": calls, **settings})
    return config.model_copy(update={"model": model})


def list_trained(lines):
    """List the trainings that a run's progress speaks of."""
    return list(dict.fromkeys(line.split(": step ")[0] for line in lines if ": step " in line))


def run(root, inputs, config=CONFIG, seed=0, progress=lambda line: None):
    root.mkdir(exist_ok=True)
    output = ArtifactWriter(root, ScoreRecord)
    context = Context("test", seed, "cpu", "float32", 1, root, progress)
    classify.run(config, inputs, output, context)
    scores = list(Artifact(root, "c", ScoreRecord, {}).records())
    return {(s.arm, s.metric, s.group): s for s in scores}, output
