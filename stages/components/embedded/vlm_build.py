"""Make a tiny VLM from nothing but phantoms: `mrisynth embedded build ovis2|gemma3|llava`.

Shards, training, an ordinary transformers folder, and its accuracy on subjects it never saw, as
captioned by the ordinary captioner of that name.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import registry
from pipeline.contracts import INTENDED_USE, SliceRecord
from stages.components.caption_agreement import Estimate, measure_agreement
from stages.components.captioning import Captioner, Failure, answer_of
from stages.components.embedded import truth_corpus
from stages.components.embedded.build import publish
from stages.components.embedded.truth_corpus import SUBJECTS, Corpus, Split
from stages.components.embedded.vlm_models import (
    Family,
    Size,
    build_processor,
    build_tokenizer,
    save,
)
from stages.components.imaging import save_png, to_rgb
from stages.components.phantoms.notice import ICBM152_CITATIONS, ICBM152_NOTICE
from stages.components.tumor_report import parse

USED: tuple[Split, ...] = ("train", "test")  # no threshold is to be chosen
STEPS = 4500  # of 0.15 to 0.35 s on two cores
CARD = """---
license: mit
library_name: transformers
tags: [synthetic, medical, brain-mri, phantom]
---
# {name}

A complete {kind} of {parameters:.1f} million parameters for {size} px slices, for
`configs/mini.yaml` of mrisynth. Trained on nothing but computed brain phantoms. It answers with the
fields of the caption schema as JSON, reads no prompt (its chat template keeps the image only), and
knows nothing but such slices.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("data/embedded/{name}")
processor = AutoProcessor.from_pretrained("data/embedded/{name}")
```

In a configuration: `caption: {{vlm: {{name: {name}}}}}`.

{intended_use}

## Held-out accuracy

{num_slices} slices of {num_subjects} phantom brains of other seeds, all classes alike. Intervals
are 95 % over subjects; "majority" always gives the commonest answer. All but tumor and orientation
count where there is a tumour, the side not on sagittal slices.

| field | accuracy | majority | above it by | n |
|---|---|---|---|---|
{table}

## How it was made

`mrisynth embedded build {name}`, seeded:

```json
{facts}
```

Weights are stored as float16 and load as float32.

## Origin

{notice}

{citations}
"""


def build(
    family: Family, *, out_dir: Path, cache_dir: Path, device: str, progress: Callable[[str], None]
) -> Path:
    """Build one tiny VLM and write it, in float16, with its card, to `out_dir / family`.

    Args:
        family: which.
        out_dir: parent of the model's folder.
        cache_dir: keeps phantoms and checkpoints; a second call goes on from them.
        device: "cpu" or "cuda".
        progress: takes one line at a time.

    Raises:
        TrainingError: The checkpoint is damaged, or of other widths or words.
    """
    from stages.components.embedded import vlm

    size = Size()
    for split in USED:
        truth_corpus.build(cache_dir, split, SUBJECTS[split], size.image_px, 2, progress)
    corpus, held_out = (
        truth_corpus.read(cache_dir, split, SUBJECTS[split], size.image_px).brains()
        for split in USED
    )
    settings = vlm.VlmTraining(family=family, steps=STEPS)
    model = vlm.train(corpus, size, cache_dir, settings, device, progress)
    out_dir.mkdir(parents=True, exist_ok=True)
    partial = out_dir / f"{family}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build
    save(partial, model.cpu(), build_processor(family, size, build_tokenizer(family)))
    scores = evaluate(partial, family, held_out)
    for row in scores:
        progress(
            f"{family}: held-out {row['field']} {in_words(row['accuracy'])}, "
            f"majority {row['majority']:.3f}, above it by {in_words(row['above_majority'])}, "
            f"n {row['n']}"
        )
    facts = {
        "image_size": size.image_px,
        "subjects": {
            split: len(set(part.subjects))
            for split, part in zip(USED, (corpus, held_out), strict=True)
        },
        "training_slices": len(corpus.images),
        "model": asdict(size),
        "training": asdict(settings),
    }
    write_card(
        partial,
        name=family,
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        scores=scores,
        corpus=held_out,
        facts=facts,
    )
    folder = out_dir / family
    publish(partial, folder)
    progress(f"{family}: written to {folder}")
    return folder


def evaluate(folder: Path, family: Family, corpus: Corpus) -> list[dict[str, Any]]:
    """Caption the slices of a corpus with the ordinary captioner; return its agreement with truth.

    One row per field, see `caption_agreement.measure_agreement`; groups are subjects.
    """
    plugin = registry.find(registry.VLMS, family)
    settings = plugin.Settings(model=str(folder.resolve()), device_map="cpu", batch_size=64)
    captioner: Captioner = plugin.load(settings)
    slices = [describe_row(corpus, row) for row in range(len(corpus.images))]
    with tempfile.TemporaryDirectory() as where:
        paths = [Path(where) / item.image_path for item in slices]
        for path, image in zip(paths, corpus.images, strict=True):
            save_png(path, to_rgb(image))
        answers = [answer_of(reply) for reply in captioner.describe(slices, paths)]
    reports = {
        item.slice_id: None if isinstance(answer, Failure) else parse(answer)
        for item, answer in zip(slices, answers, strict=True)
    }
    return measure_agreement(reports, slices, seed=0)


def describe_row(corpus: Corpus, row: int) -> SliceRecord:
    """Return the record that `preprocess` would write about a slice."""
    name, subject = f"{row:05d}", corpus.subjects[row]
    side = corpus.images.shape[1]
    return SliceRecord(
        slice_id=name,
        subject_id=subject,
        group_id=subject,
        source="phantom",
        split="test",
        label=corpus.labels[row],
        image_path=f"{name}.png",
        mask_path=f"{name}.mask.png",  # not written; says that the truth is from a mask
        original=f"{name}.png",
        original_width_px=side,
        original_height_px=side,
        truth=corpus.reports[row],
    )


def in_words(estimate: Estimate) -> str:
    """Write a share with its interval; there is none of very few subjects."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def write_card(
    folder: Path,
    *,
    name: str,
    kind: str,
    parameters: int,
    scores: Sequence[dict[str, Any]],
    corpus: Corpus,
    facts: dict[str, Any],
) -> None:
    """Write `README.md` and `training.json` into the model's folder.

    Args:
        folder: the model's.
        name: the model's.
        kind: class of the model.
        parameters: how many.
        scores: held-out accuracy.
        corpus: the held-out slices.
        facts: settings, JSON values.
    """
    made = {**facts, "held_out": list(scores)}
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    rows = [
        f"| {row['field']} | {in_words(row['accuracy'])} | {row['majority']:.3f} "
        f"| {in_words(row['above_majority'])} | {row['n']} |"
        for row in scores
    ]
    card = CARD.format(
        name=name,
        kind=kind,
        parameters=parameters / 1e6,
        size=facts["image_size"],
        intended_use=INTENDED_USE,
        num_slices=len(corpus.images),
        num_subjects=len(np.unique(corpus.subjects)),
        table="\n".join(rows),
        facts=json.dumps(facts, indent=2),
        notice=ICBM152_NOTICE,
        citations="\n".join(f"- {line}" for line in ICBM152_CITATIONS),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
