"""Records, artifacts and the stage declaration: every type that crosses a file boundary."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from pipeline.errors import ArtifactError

SCHEMA_VERSION = 4
SCRATCH = "scratch"  # folder of an artifact under construction; gone when it is published

# Said by the report and by every card of embedded weights.
INTENDED_USE = (
    "For research and teaching only. Not for diagnosis, treatment or any clinical decision, and "
    "not a substitute for real data. Every synthetic image says so in its record and in its file."
)

Label = Literal["notumor", "glioma", "meningioma", "pituitary"]
LABELS: tuple[Label, ...] = ("notumor", "glioma", "meningioma", "pituitary")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Orientation = Literal["axial", "coronal", "sagittal", "unknown"]
Side = Literal["left", "right", "midline", "bilateral", "unknown"]
Modality = Literal["t1", "t1ce", "t2", "flair", "unknown"]
Task = Literal["binary", "four_class"]
Regime = Literal[
    "real", "synthetic", "real_and_synthetic", "synthetic_then_real", "real_with_augmentation",
    "all_real",
]  # fmt: skip

# Names of rows that are no arm of the experiment, or that open such a name (`ScoreRecord.arm`).
REAL: Final = "real"  # real slices against real ones, the floor; and what trains on them alone
NOISE: Final = "noise"  # uniform noise, the ceiling
BASE: Final = "base/"  # a base model without LoRA
VAE: Final = "vae/"  # real slices passed through a base model's VAE
CONTROL: Final = "control/"  # real slices that are wrong in one known way
REFERENCE: Final = "reference/"  # another network, trained on real slices
BASELINE: Final = "baseline/"  # a classifier that sees a shortcut only
RATIO: Final = "ratio/"  # real slices with k times as many synthetic ones: ratio/k/ARM
CHANCE: Final = "chance"  # stands beside an arm in evaluate's differences
# Groups of slices (`ScoreRecord.group`): all of them, or those of another source.
ALL: Final = "all"
CROSS_TEST: Final = "cross_test:"
UNKNOWN: Final = "unknown"  # what a record does not state; no group of its own
# Scores (`ScoreRecord.metric`) that a reader looks for by name.
AT_CUT: Final = "_at_operating_point"  # ends a proportion at the operating point
COPIED_SHARE: Final = "copied_share"
GAP_CLOSED: Final = "gap_closed"
AUROC_WITHIN_CONTRAST: Final = "auroc_within_contrast"  # pairs of slices of one contrast only


class Record(BaseModel):
    """A frozen row of a JSON Lines file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TumorReport(Record):
    """What a caption states, in the poster's words; None means "not stated".

    `location` is a region of the closed list `REGIONS` of the tumour report's words, or None;
    `location_text` keeps the words that were found where they are not just `side` and `location`.
    `side` is the side of the *image* (JPEG slices carry no orientation).
    """

    tumor: bool | None = None
    location: str | None = None
    location_text: str | None = None
    side: Side | None = None
    size: str | None = None
    shape: str | None = None
    intensity: str | None = None
    orientation: Orientation | None = None
    general_description: str | None = None


class SliceRecord(Record):
    """One 2-D plane, decoded, cropped to the head, padded to a square and resized (uint8 PNG)."""

    slice_id: str
    subject_id: str | None  # None: the source names no subjects
    group_id: str  # never in two splits: a subject, or a cluster of near-duplicates
    source: str
    split: Split
    label: Label
    orientation: Orientation = "unknown"
    modality: Modality = "unknown"
    image_path: str  # relative to the artifact; PNG, RGB (three equal channels), uint8 [0, 255]
    mask_path: str | None = None  # relative; PNG, L: 0 none, 1 oedema, 2 enhancing, 3 necrosis
    original: str  # name of the source file, relative to the source's root
    original_width_px: int
    original_height_px: int
    truth: TumorReport | None = None  # ground truth where the source has it


class CaptionRecord(Record):
    """One caption of one real slice; `file_name` and `text` make it a Hugging Face imagefolder."""

    file_name: str  # relative path of the image inside the artifact; "" when status is "failed"
    text: str  # rendered, at most 77 CLIP tokens; "" when status is "failed"
    slice_id: str
    label: Label
    split: Split
    status: Literal["ok", "failed"]
    reason: str | None = None  # why it failed
    report: TumorReport | None
    raw: str  # what the captioner wrote
    num_tokens: int


class CheckpointRecord(Record):
    """One kept state of the adapter; the last row is the one that `generate` uses."""

    step: int  # optimiser steps done
    path: str  # folder inside the artifact that `pipe.load_lora_weights` takes; "." is the result
    train_loss: float
    held_out_loss: float


class SyntheticRecord(Record):
    """One generated image and all that made it."""

    image_id: str
    image_path: str
    prompt: str
    requested: TumorReport
    label: Label
    seed: int
    attempt: int = 0
    modality: Modality = "unknown"  # as the request words it
    adapter_digest: str | None  # None: the base model without LoRA
    counterfactual_of: str | None = None  # same seed, other side in the prompt
    prompt_slice_id: str | None = None  # the slice whose caption is the prompt; None: of the grid
    synthetic: Literal[True] = True


class ScoreRecord(Record):
    """One number of the report, with its interval and its sample sizes."""

    experiment: str
    arm: str  # an arm's name, or REAL, NOISE, BASE, VAE or CONTROL + name
    stage: str
    metric: str
    features: str | None
    group: str  # ALL, a class or an orientation
    value: float
    low: float | None
    high: float | None
    n_real: int
    n_synthetic: int
    higher_is_better: bool
    p: float | None = None  # of a permutation against the floor, one-sided; None: not tested
    num_groups: int | None = None  # of the real slices (subjects), or of prompts; None: not counted
    num_negative_groups: int | None = None  # of these, groups with slices without a tumour


# Sections of the page, in its order; a metric may open one of its own, which goes before the last.
DISTANCE: Final = "Distance"
FIDELITY: Final = "Fidelity and coverage"
VARIETY: Final = "Variety (read beside the row of slices that nobody generated)"
OTHER_SCORES: Final = "Other scores"


class ScoreStyle(Record):
    """How a page shows a score: what its maker says of it, kept in the notes beside the scores."""

    name: str = ""  # for readers; "": its key in words
    is_share: bool = False  # in [0, 1], shown as a percentage
    digits: int | None = None  # after the point; None: 3 below 10, 2 from there on
    section: str = OTHER_SCORES


class Licence(Record):
    """A part that a run used, and what its terms say in a few words."""

    part: str
    terms: str
    notice: str = ""  # must be printed word by word
    citations: tuple[str, ...] = ()
    is_permissive: bool = False  # asks for no more than credit, so that nothing is to be accepted


class Part(Record):
    """What a plug-in with its settings really is, for readers of the page; kept in manifests."""

    name: str
    licence: Licence | None = None  # None: it has no terms of its own
    is_embedded: bool = False  # its weights are this repository's
    study: str | None = None  # the captioner of the reproduced study that it is, if any
    slices: str = "real slices"  # of a source: what readers call slices that nobody generated
    limit: str = ""  # of a source: "what its slices cannot show: why"
    convention: str = "The source does not say which side of the patient that is."


class PredictionRecord(Record):
    """One test slice judged by one classifier."""

    arm: str
    seed: int
    slice_id: str
    label: Label
    probability: float  # of "tumour"
    task: Task = "binary"
    probabilities: dict[Label, float] | None = None  # of each class, where the task is four_class


class SkippedRecord(Record):
    """An input that could not be used, and why."""

    original: str
    reason: str


RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True)
class Artifact(Generic[RecordT]):
    """A finished, read-only folder: files, `records.jsonl` and `manifest.json`."""

    root: Path
    digest: str
    record_type: type[RecordT]
    manifest: Mapping[str, Any]

    def records(self) -> Iterator[RecordT]:
        """Yield the records of `records.jsonl` in file order.

        Raises:
            ArtifactError: A line does not fit the record type.
        """
        path = self.root / "records.jsonl"
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield self.record_type.model_validate_json(line)
                except ValueError as error:
                    raise ArtifactError(f"{path} line {number}: {error}") from error

    def path(self, relative: str) -> Path:
        """Resolve a path of a record; one that leaves the artifact is refused.

        Raises:
            ArtifactError: The path is absolute or leaves the artifact.
        """
        return inside(self.root, relative)


@dataclass
class ArtifactWriter(Generic[RecordT]):
    """The `.partial` folder of an artifact under construction; the runner publishes it.

    A long stage keeps in `scratch` what it needs to go on after a kill.
    """

    root: Path
    record_type: type[RecordT]
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # JSON values; go to the manifest

    def path(self, relative: str) -> Path:
        """Resolve a path inside the artifact and make its parent folder."""
        path = inside(self.root, relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def scratch(self, relative: str) -> Path:
        """Resolve a path of what is no part of the artifact: journals, states to go on from.

        It stays until the manifest is written, so that no work is lost by a kill before that.
        """
        return self.path(f"{SCRATCH}/{relative}")

    def write(self, records: Iterable[RecordT]) -> int:
        """Write `records.jsonl` whole and count its lines."""
        count = write_records(self.path("records.jsonl"), records)
        self.counts["written"] = count
        return count


def inside(root: Path, relative: str) -> Path:
    """Return `root / relative`, refusing what would leave `root`.

    Raises:
        ArtifactError: The path is absolute or leaves the folder.
    """
    path = root / relative
    if Path(relative).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise ArtifactError(f"path {relative!r} leaves its artifact {root}")
    return path


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write JSON Lines with sorted keys (the same records give the same bytes)."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            row = record.model_dump(mode="json")
            out.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_parts(manifest: Mapping[str, Any], field: str) -> list[Part]:
    """Read what a field of a stage's section named; nothing where no plug-in spoke for itself."""
    return [Part.model_validate(row) for row in (manifest.get("parts") or {}).get(field, ())]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are refused, and what is no number as one.

    A path that begins with `~` is read as a shell reads it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before", check_fields=False)
    @classmethod
    def _is_meant(cls, value: object, info: ValidationInfo) -> object:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kinds & {int, float} and not kinds & {bool, Any}:
            raise ValueError(f"expected a number, found {str(value).lower()}")
        if isinstance(value, str) and value.startswith("~") and Path in kinds:
            return Path(value).expanduser()
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that a union stands for."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return set(get_args(annotation)) if is_union else {annotation}


class PluginConfig(Section):
    """A plug-in by its file name, with its own settings."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a stage may know besides its own section and its inputs."""

    experiment: str
    seed: int
    device: str  # "cpu", "cuda", "cuda:1"
    dtype: str  # "float32" or "bfloat16": compute dtype; adapters and scores stay float32/64
    num_threads: int
    cache_dir: Path  # for what any experiment may share; content-addressed
    progress: Callable[[str], None]  # one plain line, for logs and terminals


@dataclass(frozen=True)
class Stage:
    """A stage's declaration: its name, its function and the types of its ports.

    `run(config, inputs, output, context)` is the only entry. `inputs` is a frozen dataclass whose
    fields are `Artifact[X]`, `Artifact[X] | None` or `dict[str, Artifact[X]]` (arm -> artifact),
    named after the stage that made them (`preprocess`, `caption`, ...; `cross_test` holds slices of
    other sources, by name); `record_type` is what the stage writes.
    """

    name: str
    run: Callable[[Any, Any, ArtifactWriter[Any], Context], None]
    config: type[Section]
    inputs: type[Any]
    record_type: type[Record]
    # Sends a published artifact where its config asks, and says where it is now.
    deliver: Callable[[Any, Path], str] | None = None
