"""Make the judge from nothing but phantoms: `mrisynth embedded build judge`.

Shards, training, a threshold chosen on validation subjects, and its accuracy on subjects that it
never saw. A second call goes on where a killed one stopped.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.seeding import numpy_rng
from stages.components.judge.agreement import (
    FIELDS,
    JudgedImage,
    list_rows,
    measure,
    spec_of,
)
from stages.components.judge.network import Judge, JudgeConfig
from stages.components.judge.reading import dice, read_images
from stages.components.judge.training import (
    JudgeData,
    JudgeTraining,
    build_data,
    calibrate,
    config_for,
    train,
)
from stages.components.statistics.bootstrap import interval, mean_over_groups
from stages.components.statistics.estimates import make_estimate
from stages.embedded.cards import publish, word_interval, write_card
from stages.embedded.corpora import truth
from stages.embedded.corpora.truth import SUBJECTS, Split, TruthCorpus

NAME = "judge"
IMAGE_SIZE = 128  # px
TRAINING = JudgeTraining(steps=24_000, bfloat16=True)
NUM_DRAWS, CONFIDENCE = 1000, 0.95
KINDS = ("all", "brain alone", "whole head")


def build(
    *,
    out_dir: Path,
    cache_dir: Path,
    device: str,
    progress: Callable[[str], None],
    image_size: int = IMAGE_SIZE,
    subjects: Mapping[Split, int] = SUBJECTS,
    settings: JudgeTraining = TRAINING,
) -> Path:
    """Build the judge and write it, in float16, with its card, to `out_dir / "judge"`.

    Args:
        out_dir: parent of the judge's folder.
        cache_dir: keeps phantoms and the checkpoint; a second call goes on from them.
        device: "cpu" or "cuda".
        progress: takes one line at a time.
        image_size: of its slices, px.
        subjects: how many phantoms each split has.
        settings: of the optimisation.

    Raises:
        TrainingError: The training failed, or the checkpoint is another one's.
    """
    for split, count in subjects.items():
        truth.build(cache_dir, split, count, image_size, 2, progress)
    corpus, val, test = (
        truth.read(cache_dir, split, subjects[split], image_size) for split in SUBJECTS
    )
    config = config_for(corpus.reports, image_size)
    chosen_on = to_data(val, config)
    judge = train(to_data(corpus, config), chosen_on, config, cache_dir, settings, device, progress)
    judge = calibrate(judge, chosen_on)
    out_dir.mkdir(parents=True, exist_ok=True)
    partial = out_dir / f"{NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build
    judge.save(partial)
    scores = evaluate(Judge.load(partial, device), test)
    for row in scores:
        progress(
            f"judge: held-out {row['slices']}, {row['field']} {word_interval(row)}, n {row['n']}"
        )
    facts = {
        "image_size": image_size,
        "subjects": dict(subjects),
        "training_slices": len(corpus.images),
        "judge": asdict(judge.config),
        "training": asdict(settings),
    }
    write_card(
        partial,
        "judge",
        name=NAME,
        kind=Judge.__name__,
        module=Judge.__module__,  # from where its reader imports it
        parameters=sum(p.numel() for p in judge.net.parameters()),
        facts=facts,
        held_out=scores,
        num_slices=len(test.images),
        num_subjects=len(set(test.subjects)),
    )
    publish(partial, out_dir / NAME)
    progress(f"judge: written to {out_dir / NAME}")
    return out_dir / NAME


def to_data(corpus: TruthCorpus, config: JudgeConfig) -> JudgeData:
    """Return what training takes."""
    return build_data(corpus.images, corpus.lesions, corpus.reports, config)


def evaluate(judge: Judge, corpus: TruthCorpus) -> list[dict[str, Any]]:
    """Judge the slices of a corpus; return its accuracy, one JSON object per kind and field."""
    readings = read_images(judge, corpus.images)
    overlaps = [
        dice(reading.patch, lesion)
        for reading, lesion in zip(readings, corpus.lesions, strict=True)
    ]
    rows = []
    for kind in KINDS:
        kept = [
            index
            for index, stripped in enumerate(corpus.stripped)
            if kind == "all" or bool(stripped) == (kind == "brain alone")
        ]
        answers = [
            JudgedImage(
                str(index),
                corpus.subjects[index],
                corpus.labels[index],
                corpus.reports[index].orientation or "unknown",
                corpus.reports[index],
                readings[index].report,
            )
            for index in kept
        ]
        for field in ("sensitivity", "specificity", *FIELDS):
            hits = list_rows(answers, field)
            measured = measure(hits, num_draws=NUM_DRAWS, seed_parts=(0, "judge", kind, field))
            if measured is None:
                continue
            share = make_estimate(
                spec_of(field, "held-out accuracy of the judge"),
                measured.share,
                num_groups=measured.num_groups,
                confidence=CONFIDENCE,
                n_real=measured.n,
                n_synthetic=0,
            )
            rows.append(
                {
                    "slices": kind,
                    "field": field,
                    "value": share.value,
                    "low": share.low,
                    "high": share.high,
                    "chance": float(measured.chance[0]),
                    "majority": measured.majority,
                    "n": measured.n,
                    "groups": measured.num_groups,
                }
            )
        with_tumor = [index for index in kept if corpus.lesions[index].any()]
        rows.append({"slices": kind, "field": "Dice"} | mean_overlap(overlaps, with_tumor, corpus))
    return rows


def mean_overlap(
    overlaps: Sequence[float], rows: Sequence[int], corpus: TruthCorpus
) -> dict[str, Any]:
    """Return the mean Dice of some slices with its interval over subjects, as a JSON object."""
    groups = len({corpus.subjects[row] for row in rows})
    blind = {"chance": None, "majority": None, "n": len(rows), "groups": groups}
    if len(rows) < 2:
        return {"value": None, "low": None, "high": None} | blind
    means, _ = mean_over_groups(
        [overlaps[row] for row in rows],
        [corpus.subjects[row] for row in rows],
        num_draws=NUM_DRAWS,
        rng=numpy_rng(0, "judge", "dice"),
    )
    low, high = interval(means[1:], confidence=CONFIDENCE)
    return {"value": float(means[0]), "low": low, "high": high} | blind
