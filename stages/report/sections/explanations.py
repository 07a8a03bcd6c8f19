"""Section of explanations: what classifiers look at, in tables and rows of maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from pipeline.contracts import ALL, Artifact, ScoreRecord, SliceRecord
from stages.report.artifacts import ReportInputs
from stages.report.claims.rules import CHANCE
from stages.report.numbers import (
    MISSING,
    SHARE,
    Legend,
    format_any,
    format_interval,
    format_p,
    format_value,
)
from stages.report.pictures import (
    CELL_PX,
    GAP_PX,
    OUTLINE,
    PAPER,
    Chart,
    find_edge,
    inline_image,
    read_cell,
)
from stages.report.tables import Table

METRICS = ("lesion_share", "deletion_area")
BY_CHANCE = "_by_chance"
MAX_ARMS = 4  # with pictures; the maps of all stand in the artifact
MAX_COLUMNS = 6
COLOURS = "inferno"
LEAST_SHOWN = 0.15  # of a map's largest value; below it the slice shows unchanged


@dataclass(frozen=True)
class MapPicture:
    """One picture of an arm: slices above, then a row of maps for each method."""

    arm: str
    what: str  # "drawn" or "wrong"
    image: Image.Image
    caption: str


def is_explanation(score: ScoreRecord) -> bool:
    """Tell whether a score is one of explanations."""
    return score.metric.removesuffix(BY_CHANCE) in METRICS


def table_explanations(scores: Sequence[ScoreRecord], notes: Mapping[str, Any]) -> Table | None:
    """Lay out each arm's methods beside chance; None without explanations."""
    by_cell = {(s.arm, s.features, s.metric): s for s in scores if is_explanation(s)}
    arms = (notes.get("explanations") or {}).get("arms") or {}
    rows = []
    for arm, method in dict.fromkeys((arm, method) for arm, method, _ in by_cell):
        share, by_chance, area, at_random = (
            by_cell.get((arm, method, name + suffix))
            for name in METRICS
            for suffix in ("", BY_CHANCE)
        )
        assert area is not None  # classify scores both together
        assert at_random is not None
        facts = arms.get(arm, {}).get("scores", {}).get(method, {})
        rows.append(
            (
                arm,
                (method or "").replace("_", " "),
                _value(share),
                _value(by_chance),
                format_p(None if share is None else share.p),
                format_value(facts.get("area_share"), SHARE),
                _value(area),
                _value(at_random),
                format_any(area.n_real),
            )
        )
    if not rows:
        return None
    head = (
        "Trained on", "map", "attribution in the lesion (%) ↑", "lesions moved at random (%)", "p",
        "lesion's share of the head (%)", "area under deletion ↓", "in random order", "n",
    )  # fmt: skip
    return Table(head=head, rows=tuple(rows), numeric=frozenset(range(2, len(head))))


def describe_explanations(notes: Mapping[str, Any]) -> str:
    """Say what was explained and how to read the tables; "" without explanations."""
    recorded = notes.get("explanations")
    if not recorded:
        return ""
    silent = {
        f"{method} of {arm} ({why})"
        for arm, facts in recorded["arms"].items()
        for method, why in facts["skipped"].items()
    }
    left_out = f" Not possible: {'; '.join(sorted(silent))}." if silent else ""
    return (
        "Maps of what speaks for a tumour, of each arm's first run, made after all scores. "
        "Attribution in the lesion is a share of all attribution within the head; a map that "
        "knows nothing has what the lesions have when they are moved at random within their "
        "heads, and p says how often such moves do as well. Under deletion the head is covered, "
        "most attributed parts first: a small area means that the map found what the classifier "
        f"looks at.{left_out}"
    )


def draw_explanations(
    notes: Mapping[str, Any],
    classify: Artifact[ScoreRecord],
    preprocess: Artifact[SliceRecord],
) -> list[MapPicture]:
    """Draw the maps of the first arms: drawn slices, then some that were judged wrongly."""
    arms = (notes.get("explanations") or {}).get("arms") or {}
    records = {r.slice_id: r for r in preprocess.records()} if arms else {}
    pictures = []
    for arm, facts in list(arms.items())[:MAX_ARMS]:
        with np.load(classify.path(facts["maps"]), allow_pickle=False) as file:
            maps = {name: file[name] for name in file.files}
        order = list(facts["slices"])
        for what, title in (("drawn", "Drawn by seed"), ("wrong", "Judged wrongly")):
            ids = facts[what][:MAX_COLUMNS]
            if not ids or not maps:
                continue
            chosen = {name: stack[[order.index(i) for i in ids]] for name, stack in maps.items()}
            image = draw_maps([records[i] for i in ids], chosen, preprocess)
            labels = ", ".join(f"{records[i].label} ({facts['slices'][i]:.2f})" for i in ids)
            rows = ", ".join(name.replace("_", " ") for name in maps)
            pictures.append(
                MapPicture(
                    arm,
                    what,
                    image,
                    f"{arm}. {title}; from left to right (probability of a tumour): {labels}. From "
                    f"top to bottom: the slices, {rows}. Outlined: the lesion's mask.",
                )
            )
    return pictures


def draw_maps(
    records: Sequence[SliceRecord],
    maps: Mapping[str, NDArray[np.floating[Any]]],
    preprocess: Artifact[SliceRecord],
) -> Image.Image:
    """Compose slices, one a column, above their maps (n, height, width), one row a method."""
    step = CELL_PX + GAP_PX
    size = (len(records) * step - GAP_PX, (1 + len(maps)) * step - GAP_PX)
    canvas = Image.new("RGB", size, PAPER)
    for column, record in enumerate(records):
        pixels = read_cell(preprocess.path(record.image_path))
        outline = _outline(record, preprocess, pixels.shape[:2])
        for row, stack in enumerate([None, *maps.values()]):
            tile = pixels if stack is None else paint(pixels, stack[column])
            shown = tile.copy()
            shown[outline] = OUTLINE
            offset = ((CELL_PX - shown.shape[1]) // 2, (CELL_PX - shown.shape[0]) // 2)
            place = (column * step + offset[0], row * step + offset[1])
            canvas.paste(Image.fromarray(np.ascontiguousarray(shown)), place)
    return canvas


def paint(pixels: NDArray[np.uint8], attribution: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Lay a map in [0, 1] over a slice (height, width, 3), the more opaque the larger it is."""
    size = (pixels.shape[1], pixels.shape[0])
    scaled = Image.fromarray(attribution.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    heat = np.clip(np.asarray(scaled), 0.0, 1.0)
    colours = colormaps[COLOURS](heat)[..., :3] * 255
    weight = np.where(heat > LEAST_SHOWN, 0.35 + 0.5 * heat, 0.0)[..., None]
    mixed: NDArray[np.uint8] = np.rint(weight * colours + (1 - weight) * pixels).astype(np.uint8)
    return mixed


def _outline(
    record: SliceRecord, preprocess: Artifact[SliceRecord], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Find the lesion's edge as it lies in a cell; nothing without a mask."""
    if record.mask_path is None:
        return np.zeros(shape, np.bool_)
    with Image.open(preprocess.path(record.mask_path)) as opened:
        return find_edge(np.asarray(opened.convert("L")) > 0, shape)


def _value(score: ScoreRecord | None) -> str:
    if score is None:
        return MISSING
    style = Legend({})[score.metric]
    ends = format_interval(score.low, score.high, style)
    return f"{format_value(score.value, style)} ({ends})"


@dataclass(frozen=True)
class ExplanationSection:
    """What classifiers look at: words, scores of the maps, and the maps."""

    words: str
    table: Table | None  # None: no classifier is clear of chance
    pictures: tuple[Chart, ...]


def find_guessers(scores: Sequence[ScoreRecord]) -> list[str]:
    """Name the arms whose classifier is not clear of chance: maps of it would explain nothing."""
    overall = [score for score in scores if (score.metric, score.group) == ("auroc", ALL)]
    return [score.arm for score in overall if score.low is None or score.low <= CHANCE]


def lay_out_explanations(
    inputs: ReportInputs, scores: Sequence[ScoreRecord]
) -> ExplanationSection | None:
    """Lay out what classifiers look at; None where nothing was explained."""
    notes = inputs.classify.manifest["notes"]
    if not any(is_explanation(score) for score in scores):
        return None
    recorded, guessers = notes["explanations"], find_guessers(scores)
    arms = {arm: facts for arm, facts in recorded["arms"].items() if arm not in guessers}
    shown = {**notes, "explanations": {**recorded, "arms": arms}}
    words = describe_explanations(shown) if arms else ""
    if guessers:
        words += (
            f" {', '.join(guessers)}: no maps are shown, since the AUROC is not clear of chance, "
            "and maps of guesses explain nothing."
        )
    drawn = []
    for it in draw_explanations(shown, inputs.classify, inputs.preprocess):
        alt = f"maps of {it.arm} over {inputs.source.slices}, {it.what}"
        drawn.append(Chart(inline_image(it.image, alt, is_synthetic=False), it.caption))
    clear = [score for score in scores if score.arm not in guessers]
    return ExplanationSection(words.strip(), table_explanations(clear, shown), tuple(drawn))
