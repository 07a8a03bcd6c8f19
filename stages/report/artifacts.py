"""Artifacts of a run as the page reads them: each arm's manifests, in the order of the page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contracts import (
    ALL,
    BASE,
    CONTROL,
    NOISE,
    REAL,
    VAE,
    Artifact,
    CaptionRecord,
    CheckpointRecord,
    Part,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    read_parts,
)
from stages.report.arms import Arm, Manifest, read_arm
from stages.report.charts import RowKind

STAGE_ORDER = ("preprocess", "caption", "finetune", "generate", "evaluate", "classify")
KINDS: tuple[RowKind, ...] = ("arm", "base", "vae")
EDGES = (REAL, NOISE)  # the floor and the ceiling


@dataclass(frozen=True)
class ReportInputs:
    """Everything the run made; `generate` is keyed by arm and base/NAME, the others by arm."""

    preprocess: Artifact[SliceRecord]
    caption: dict[str, Artifact[CaptionRecord]]
    finetune: dict[str, Artifact[CheckpointRecord]]
    generate: dict[str, Artifact[SyntheticRecord]]
    evaluate: Artifact[ScoreRecord]
    classify: Artifact[ScoreRecord]

    def stages(self) -> list[tuple[str, Manifest]]:
        """List (arms, manifest) of every artifact once, in running order."""
        once: dict[str, tuple[list[str], Manifest]] = {}
        artifacts: list[tuple[str, Artifact[Any]]] = [
            (ALL, self.preprocess),
            *self.caption.items(),
            *self.finetune.items(),
            *self.generate.items(),
            (ALL, self.evaluate),
            (ALL, self.classify),
        ]
        for arm, artifact in artifacts:
            arms, _ = once.setdefault(artifact.digest, ([], artifact.manifest))
            if arm not in arms:
                arms.append(arm)
        rows = [(", ".join(arms), manifest) for arms, manifest in once.values()]
        return sorted(rows, key=lambda row: STAGE_ORDER.index(row[1]["stage"]))

    def arms(self) -> tuple[Arm, ...]:
        """Read every arm's facts; base models without LoRA are no arms."""
        return tuple(
            read_arm(
                name,
                caption=_manifest(self.caption.get(name)),
                finetune=_manifest(self.finetune.get(name)),
                generate=artifact.manifest,
            )
            for name, artifact in self.generate.items()
            if not is_base(name)
        )

    @property
    def source(self) -> Part:
        """Return what the source of the slices says of itself."""
        plugin = self.preprocess.manifest["config"]["source"]["name"]
        parts = read_parts(self.preprocess.manifest, "source")
        return next(iter(parts), Part(name=str(plugin)))

    def other_parts(self) -> list[Part]:
        """List what else the stages used that has terms: networks, refiners, who read again."""
        known = {"base_model", "base_models", "vlm", "tokenizer"}  # of the arms
        return [
            part
            for _, manifest in self.stages()
            for field in (manifest.get("parts") or {})
            if field not in known
            for part in read_parts(manifest, field)
        ]


def name_deciding_features(inputs: ReportInputs) -> str | None:
    """Name the extractor that claims rest on: the first that evaluate was given."""
    extractors = inputs.evaluate.manifest["config"].get("features") or ()
    return next((str(plugin["name"]) for plugin in extractors), None)


def sort_by_kind(scores: Iterable[ScoreRecord]) -> list[ScoreRecord]:
    """Sort scores: arms first, then base models, VAE rows, the floor and the ceiling; stable."""

    def rank(score: ScoreRecord) -> int:
        if score.arm in EDGES:
            return len(KINDS) + EDGES.index(score.arm)
        return KINDS.index(kind_of(score.arm))

    return sorted(scores, key=rank)


def drop_twins(scores: Sequence[ScoreRecord]) -> tuple[list[ScoreRecord], tuple[str, ...]]:
    """Keep one of the VAE rows that are equal in every score, and name those left out.

    Base models that share a VAE have equal rows.
    """
    cells: dict[str, dict[tuple[str, str | None, str], float]] = {}
    for score in scores:
        if score.arm.startswith(VAE):
            place = (score.metric, score.features, score.group)
            cells.setdefault(score.arm, {})[place] = score.value
    twins = {}
    for arm, values in cells.items():
        first = next(other for other, known in cells.items() if known == values)
        if first != arm:
            twins[arm] = first
    words = tuple(
        f"{arm} has the VAE of {first}, and every score of it; its rows are left out"
        for arm, first in twins.items()
    )
    return [score for score in scores if score.arm not in twins], words


def read_caption_manifests(inputs: ReportInputs) -> dict[str, Manifest]:
    """List every distinct caption artifact's manifest, named by its captioner."""
    columns: dict[str, Manifest] = {}
    seen = set()
    vlms = {arm.name: arm.vlm for arm in inputs.arms()}
    for name, artifact in inputs.caption.items():
        if artifact.digest in seen:
            continue
        seen.add(artifact.digest)
        vlm = vlms.get(name) or name
        columns[vlm if vlm not in columns else f"{vlm} ({name})"] = artifact.manifest
    return columns


def is_base(arm: str) -> bool:
    """Tell whether an arm is a base model without LoRA."""
    return arm.startswith(BASE)


def is_control(score: ScoreRecord) -> bool:
    """Tell whether a score is of real slices that are wrong in one known way."""
    return score.arm.startswith(CONTROL)


def kind_of(arm: str) -> RowKind:
    if is_base(arm):
        return "base"
    return "vae" if arm.startswith(VAE) else "arm"


def _manifest(artifact: Artifact[Any] | None) -> Manifest | None:
    return None if artifact is None else artifact.manifest
