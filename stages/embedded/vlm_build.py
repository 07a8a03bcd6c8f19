"""Make a tiny VLM from nothing but phantoms: `mrisynth embedded build ovis2|gemma3|llava`.

Shards, training, an ordinary transformers folder, and its accuracy on subjects it never saw, as
captioned by the ordinary captioner of that name.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.contracts import SliceRecord
from stages.components.captioning.captioner import Captioner, Failure, answer_of
from stages.components.imaging.pixels import save_png, to_rgb
from stages.components.tumor_report.agreement import measure_agreement
from stages.components.tumor_report.parsing import parse
from stages.embedded.cards import publish, word_interval, write_card
from stages.embedded.corpora import truth
from stages.embedded.corpora.truth import SUBJECTS, Split, TruthCorpus
from stages.embedded.vlm_models import Family, Size, build_processor, build_tokenizer, save

USED: tuple[Split, ...] = ("train", "test")  # no threshold is to be chosen
STEPS = 4500  # of 0.15 to 0.35 s on two cores


def build(
    family: Family,
    *,
    out_dir: Path,
    cache_dir: Path,
    device: str,
    progress: Callable[[str], None],
    size: Size = Size(),  # noqa: B008 # frozen
    subjects: Mapping[Split, int] = SUBJECTS,
    steps: int = STEPS,
) -> Path:
    """Build one tiny VLM and write it, in float16, with its card, to `out_dir / family`.

    Args:
        family: which.
        out_dir: parent of the model's folder.
        cache_dir: keeps phantoms and checkpoints; a second call goes on from them.
        device: "cpu" or "cuda".
        progress: takes one line at a time.
        size: of the model and its slices.
        subjects: how many phantoms each split has.
        steps: of the optimiser.

    Raises:
        TrainingError: The checkpoint is damaged, or of other widths or words.
    """
    from stages.embedded import vlm_training

    for split in USED:
        truth.build(cache_dir, split, subjects[split], size.image_px, 2, progress)
    corpus, held_out = (
        truth.read(cache_dir, split, subjects[split], size.image_px).brains() for split in USED
    )
    settings = vlm_training.VlmTraining(family=family, steps=steps)
    model = vlm_training.train(corpus, size, cache_dir, settings, device, progress)
    out_dir.mkdir(parents=True, exist_ok=True)
    partial = out_dir / f"{family}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build
    save(partial, model.cpu(), build_processor(family, size, build_tokenizer(family)))
    scores = evaluate(partial, family, held_out)
    for row in scores:
        progress(
            f"{family}: held-out {row['field']} {word_interval(row['accuracy'])}, "
            f"majority {row['majority']:.3f}, above it by {word_interval(row['above_majority'])}, "
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
        "vlm",
        name=family,
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        facts=facts,
        held_out=scores,
        num_slices=len(held_out.images),
        num_subjects=len(set(held_out.subjects)),
    )
    folder = out_dir / family
    publish(partial, folder)
    progress(f"{family}: written to {folder}")
    return folder


def evaluate(folder: Path, family: Family, corpus: TruthCorpus) -> list[dict[str, Any]]:
    """Caption the slices of a corpus with the ordinary captioner; return its agreement with truth.

    One row per field, see `measure_agreement`; groups are subjects.
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


def describe_row(corpus: TruthCorpus, row: int) -> SliceRecord:
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
