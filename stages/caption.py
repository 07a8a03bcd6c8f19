"""Write a caption for every slice: a captioner's words, parsed, checked and rendered.

Reads the preprocess artifact. Writes `records.jsonl` (`CaptionRecord`, one per slice of the chosen
splits, in their order) and a Hugging Face imagefolder: `images/<split>/<slice_id>.png` and
`metadata.jsonl` with `file_name` and `text`, for the slices whose caption succeeded.

Invariants: a text has at most 77 tokens in every tokenizer of the base model; a caption that failed
is counted with its reason and stays empty; a run that was killed and resumed gives the same bytes.

Methods: "Each slice was described by {vlm}; the description was read into a fixed schema and
rendered as text of at most 77 CLIP tokens, shortening free text and never a field."
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    Context,
    SliceRecord,
    Stage,
)
from pipeline.errors import ConfigError, DataError, SkippedTooManyError
from pipeline.settings import CaptionConfig
from stages.components.caption_checks import summarise
from stages.components.captioning import Captioner, Failure, Journal
from stages.components.clip_text import MAX_TOKENS, load_tokenizers, token_counter
from stages.components.tumor_report import parse, render, with_label

JOURNAL = "captions.journal.jsonl"


@dataclass(frozen=True)
class CaptionInputs:
    """What the stage reads."""

    preprocess: Artifact[SliceRecord]


def answer_all(
    slices: Sequence[SliceRecord],
    paths: Sequence[Path],
    captioner: Captioner,
    journal: Journal,
    progress: Callable[[str], None],
) -> dict[str, str | Failure]:
    """Ask the captioner for every slice that the journal lacks, batch by batch.

    Raises:
        DataError: The captioner gave another number of answers than there were slices.
    """
    answers = journal.read()
    if answers:
        progress(f"{len(answers)} of {len(slices)} captions were in the journal")
    for start in range(0, len(slices), captioner.batch_size):
        stop = start + captioner.batch_size
        todo = [
            (item, path)
            for item, path in zip(slices[start:stop], paths[start:stop], strict=True)
            if item.slice_id not in answers
        ]
        if not todo:
            continue
        raws = captioner.describe([item for item, _ in todo], [path for _, path in todo])
        if len(raws) != len(todo):
            raise DataError(
                f"the captioner answered {len(raws)} times for {len(todo)} slices, "
                f"from {todo[0][0].slice_id!r} on; every slice needs one answer"
            )
        batch = {item.slice_id: raw for (item, _), raw in zip(todo, raws, strict=True)}
        journal.append(batch)
        answers.update(batch)
        progress(f"{len(answers)} of {len(slices)} captions")
    return answers


def finish_caption(
    item: SliceRecord, answer: str | Failure, config: CaptionConfig, count: Callable[[str], int]
) -> CaptionRecord:
    """Turn an answer into a record: parsed and rendered, or failed with its reason."""
    try:
        if isinstance(answer, Failure):
            raise DataError(answer.reason)
        report = parse(answer)
        if config.include_label:
            report = with_label(report, item.label)
        text = render(report, config.style, count, MAX_TOKENS, label=item.label)
    except DataError as error:
        return CaptionRecord(
            file_name="",
            text="",
            slice_id=item.slice_id,
            label=item.label,
            split=item.split,
            status="failed",
            reason=str(error),
            report=None,
            raw="" if isinstance(answer, Failure) else answer,
            num_tokens=0,
        )
    return CaptionRecord(
        file_name=f"images/{item.split}/{item.slice_id}.png",
        text=text,
        slice_id=item.slice_id,
        label=item.label,
        split=item.split,
        status="ok",
        report=report,
        raw=answer,
        num_tokens=count(text),
    )


def check_failures(records: Sequence[CaptionRecord], max_failed_fraction: float) -> Counter[str]:
    """Count the reasons of failure.

    Raises:
        SkippedTooManyError: More captions failed than the configuration allows.
    """
    reasons = Counter(record.reason or "" for record in records if record.status == "failed")
    failed = reasons.total()
    if failed > max_failed_fraction * len(records):
        most = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise SkippedTooManyError(
            f"{failed} of {len(records)} captions failed, more than "
            f"caption.max_failed_fraction {max_failed_fraction}: {most}. "
            "Mend the captions or raise the limit"
        )
    return reasons


def link_image(source: Path, target: Path) -> None:
    """Give an image a second name; copy it where the file system cannot (or another disk)."""
    target.unlink(missing_ok=True)  # left by a run that was killed
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_imagefolder(
    records: Sequence[CaptionRecord],
    images: Mapping[str, Path],
    output: ArtifactWriter[CaptionRecord],
) -> None:
    """Write the images and `metadata.jsonl`; failed captions are left out of both."""
    with output.path("metadata.jsonl").open("w", encoding="utf-8") as out:
        for record in records:
            if record.status == "ok":
                link_image(images[record.slice_id], output.path(record.file_name))
                row = {"file_name": record.file_name, "text": record.text}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def run(
    config: CaptionConfig,
    inputs: CaptionInputs,
    output: ArtifactWriter[CaptionRecord],
    context: Context,
) -> None:
    """Caption every slice of the chosen splits; only this function picks a captioner or writes.

    Raises:
        ConfigError: `caption.tokenizer` is not set.
        DataError: No slice is in the chosen splits.
        SkippedTooManyError: More captions failed than `max_failed_fraction`.
    """
    if config.tokenizer is None:
        problem = "caption.tokenizer: expected a base model, found None; name one, as arms do"
        raise ConfigError("the configuration", [problem])
    slices = [item for item in inputs.preprocess.records() if item.split in config.splits]
    if not slices:
        raise DataError(
            f"{inputs.preprocess.root} holds no slice of the splits {', '.join(config.splits)}; "
            "change caption.splits or preprocess"
        )
    images = {item.slice_id: inputs.preprocess.path(item.image_path) for item in slices}
    count = token_counter(load_tokenizers(config.tokenizer))
    plugin = registry.find(registry.VLMS, config.vlm.name)
    captioner: Captioner = plugin.load(plugin.Settings.model_validate(config.vlm.settings))
    journal = Journal(output.path(JOURNAL))
    paths = [images[item.slice_id] for item in slices]
    answers = answer_all(slices, paths, captioner, journal, context.progress)
    records = [finish_caption(item, answers[item.slice_id], config, count) for item in slices]
    reasons = check_failures(records, config.max_failed_fraction)
    write_imagefolder(records, images, output)
    output.write(records)
    truths = {item.slice_id: item.truth for item in slices}
    output.counts.update(read=len(slices), failed=reasons.total())
    output.notes.update(
        vlm=config.vlm.name,
        style=config.style,
        include_label=config.include_label,
        failed=dict(reasons.most_common(20)),
        **summarise(records, truths, count, MAX_TOKENS),
    )
    journal.path.unlink(missing_ok=True)  # the records hold all of it


STAGE = Stage("caption", run, CaptionConfig, CaptionInputs, CaptionRecord)
