"""Re-captioning: a captioner reads the images; do its words say what the prompts asked for?

The score is of generator and captioner together, so it stands under its own names, `recaption_*`,
and beside it, as the row `real`, the same captioner's accuracy on real test slices, against what is
known of them (ground truth, masks, else the folder's label). A field that is known of no real slice
has no such row: then nobody knows what the captioner's word is worth, and the notes say so. What a
caption does not state is wrong there.

The captioner sees pixels alone: truth is taken out of the records, and the config refuses a prompt
that names the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import registry
from pipeline.contracts import (
    ALL,
    REAL,
    Artifact,
    ArtifactWriter,
    Context,
    PluginConfig,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
)
from pipeline.errors import DataError
from stages.components.captioning.asking import answer_all, read_settings
from stages.components.captioning.cache import find_cache
from stages.components.captioning.captioner import Failure, Reply, answer_of
from stages.components.captioning.journal import Journal
from stages.components.statistics import cohorts
from stages.components.tumor_report import agreement
from stages.components.tumor_report.agreement import Comparison
from stages.components.tumor_report.parsing import parse

PREFIX = "recaption_"
JOURNAL = "recaption.journal.jsonl"
PROMPT = "prompt"  # the reference of synthetic images


@dataclass(frozen=True)
class Recaptioned:
    """Scores by arm and field, and what the manifest says of them (JSON values)."""

    records: list[ScoreRecord]
    notes: dict[str, Any]


def recaption(
    vlm: PluginConfig,
    *,
    preprocess: Artifact[SliceRecord],
    generate: Mapping[str, Artifact[SyntheticRecord]],
    real: Sequence[str],
    chosen: Mapping[str, Sequence[str]],
    output: ArtifactWriter[ScoreRecord],
    context: Context,
) -> Recaptioned:
    """Caption the chosen images and compare each field with what was asked for.

    Args:
        vlm: The captioner.
        preprocess: Real slices.
        generate: Synthetic images by arm.
        real: Names of the real slices to be captioned.
        chosen: Names of the synthetic images to be captioned, by arm.
        output: Keeps a journal while this goes on.
        context: Of the stage.

    Raises:
        DataError: The captioner needs ground truth.
    """
    plugin = registry.find(registry.VLMS, vlm.name)
    settings = read_settings(plugin, vlm, context)
    by_id = {item.slice_id: item for item in preprocess.records()}
    slices = [by_id[name] for name in real]
    images: dict[str, list[SyntheticRecord]] = {}
    shown = [(blind(item), preprocess.path(item.image_path)) for item in slices]
    for arm, artifact in generate.items():
        by_name = {item.image_id: item for item in artifact.records()}
        images[arm] = [by_name[name] for name in chosen[arm]]
        shown += [(as_slice(arm, item), artifact.path(item.image_path)) for item in images[arm]]
    journal = Journal(output.scratch(JOURNAL))
    context.progress(f"recaption: {len(shown)} images")
    replies = answer_all(
        [item for item, _ in shown],
        [path for _, path in shown],
        lambda: plugin.load(settings),
        journal,
        context.progress,
        cache=find_cache(plugin, settings, vlm.name, context.cache_dir),
    )
    reports = {slice_id: report_of(reply) for slice_id, reply in replies.items()}
    own_reports = {item.slice_id: reports[name_of(REAL, item.slice_id)] for item in slices}
    known = agreement.measure_agreement(own_reports, slices, seed=context.seed)
    scores = {REAL: {row["field"]: row for row in known}}
    for arm, items in images.items():
        captions = {item.image_id: reports[name_of(arm, item.image_id)] for item in items}
        units = cohorts.find_units(generate[arm], preprocess)
        scores[arm] = score_prompts(captions, items, units, seed=context.seed)
    fields = [f for f in agreement.FIELDS if any(f in scores[arm] for arm in images)]
    notes = {
        "vlm": vlm.name,
        "fields": scores,
        "failed": sum(report is None for report in reports.values()),
        "n": len(reports),
        "error_unknown": [field for field in fields if field not in scores[REAL]],
    }
    records = [
        as_score(rows[field], arm, field, vlm.name, context.experiment)
        for arm, rows in scores.items()
        for field in fields
        if field in rows
    ]
    return Recaptioned(records, notes)


def name_of(arm: str, image: str) -> str:
    """Name an image among those of all arms."""
    return f"{arm}/{image}"


def blind(item: SliceRecord) -> SliceRecord:
    """Take the truth out of a real slice's record."""
    return item.model_copy(
        update={"slice_id": name_of(REAL, item.slice_id), "truth": None, "mask_path": None}
    )


def as_slice(arm: str, item: SyntheticRecord) -> SliceRecord:
    """Stand in for a synthetic image's slice, which has none; captioners ask by slices."""
    return SliceRecord(
        slice_id=name_of(arm, item.image_id),
        subject_id=None,
        group_id=item.image_id,
        source="synthetic",
        split="test",
        label=item.label,
        image_path=item.image_path,
        original=item.image_id,
        original_width_px=1,  # of no file; nobody reads it here
        original_height_px=1,
    )


def report_of(reply: Reply) -> TumorReport | None:
    """Read what a reply states; None where there is no caption, or none that can be read."""
    answer = answer_of(reply)
    if isinstance(answer, Failure):
        return None
    try:
        return parse(answer)
    except DataError:
        return None


def compare_with_prompt(
    report: TumorReport | None, field: str, item: SyntheticRecord, unit: str
) -> Comparison | None:
    """Set a caption beside its image's prompt.

    None where the prompt says nothing of the field, or the caption does not count
    (`agreement.is_counted`).
    """
    if not agreement.is_counted(report, field):
        return None
    known = agreement.read_known(item.requested, field)
    if field == "type":
        known = item.label if item.label != "notumor" else None
    if known is None:
        return None
    return Comparison(agreement.read_field(report, field), known, unit, PROMPT)


def score_prompts(
    reports: Mapping[str, TumorReport | None],
    images: Sequence[SyntheticRecord],
    units: Mapping[str, str],
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Score the captions of one arm by field, as `score_field` does; `units` as `find_units`."""
    scores = {}
    for field in agreement.FIELDS:
        comparisons = [
            compare_with_prompt(reports[item.image_id], field, item, units[item.image_id])
            for item in images
        ]
        if pairs := [pair for pair in comparisons if pair is not None]:
            scores[field] = agreement.score_field(pairs, field, seed=seed)
    return scores


def as_score(
    row: Mapping[str, Any], arm: str, field: str, vlm: str, experiment: str
) -> ScoreRecord:
    """Turn one field of one arm into a row of the results; the captioner stands as features."""
    share = row["accuracy"]
    return ScoreRecord(
        experiment=experiment,
        arm=arm,
        stage="evaluate",
        metric=PREFIX + field,
        features=vlm,
        group=ALL,
        value=share["value"],
        low=share["low"],
        high=share["high"],
        n_real=row["n"] if arm == REAL else 0,
        n_synthetic=0 if arm == REAL else row["n"],
        higher_is_better=True,
        num_groups=row["num_groups"],
    )
