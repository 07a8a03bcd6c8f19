"""Section of copies: what was compared, shares by arm, and pictures of the closest pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.contracts import REAL, ScoreRecord
from stages.report.artifacts import ReportInputs, sort_by_kind
from stages.report.claims.evidence import Difference, Findings, read_differences
from stages.report.numbers import (
    MISSING,
    SHARE,
    Legend,
    format_any,
    format_interval,
    format_value,
)
from stages.report.pictures import CELL_PX, GAP_PX, PAPER, Chart, inline_image, read_cell
from stages.report.tables import Table, table_pivot

COPIED, RECALL = "copied_share", "copy_recall"
PAIR_KEYS = ("image", "train", "by", "correlation", "distance", "copy")


@dataclass(frozen=True)
class ClosestPair:
    """An image, its nearest training slice, and how near that is."""

    image: str
    train: str
    by: str  # "pixels" or "features"
    correlation: float
    distance: float
    is_copy: bool


@dataclass(frozen=True)
class CopyFacts:
    """What evaluate wrote down about its search."""

    words: str
    recall: Mapping[str, tuple[float, ...]]  # either way, by pixels, by features
    num_planted_each: int
    closest: Mapping[str, tuple[ClosestPair, ...]]


def read_copies(notes: Mapping[str, Any], slices: str = REAL) -> CopyFacts | None:
    """Read `notes["copies"]` of evaluate; None where no search was made."""
    search = notes.get("copies")
    if not search:
        return None
    words = (
        f"Every image was compared with {format_any(search['num_train'])} training slices, on "
        f"{search['network']} features and by the correlation of brightness over small shifts and "
        f"mirroring. It is called a copy where it is nearer to one than all but 1 % of "
        f"{format_any(search['num_held_out'])} held-out {slices} are: a distance below "
        f"{format_any(search['threshold_distance'])} or a correlation above "
        f"{format_any(search['threshold_correlation'])}. The row of {slices} says how many "
        "innocent ones are called so, each by held-out slices of other groups; the last column "
        "says by how much a row exceeds it. A row's share is the mean over thresholds that lack "
        "one group each; its interval holds that other held-out slices would have set others."
    )
    closest = {
        arm: tuple(ClosestPair(*(row[key] for key in PAIR_KEYS)) for row in rows)
        for arm, rows in search["closest"].items()
    }
    ways = [search[name] for name in ("recall", "recall_by_pixels", "recall_by_features")]
    recall = {kind: tuple(way[kind] for way in ways) for kind in search["recall"]}
    return CopyFacts(words, recall, search["num_planted_each"], closest)


def table_recall(facts: CopyFacts) -> Table:
    """Lay out the share of planted copies that was found, by kind: either way, and by each."""
    rows = tuple(
        (
            kind,
            *(format_value(share, SHARE) for share in shares),
            format_any(facts.num_planted_each),
        )
        for kind, shares in facts.recall.items()
    )
    return Table.of(("Planted", "found (%)", "by pixels (%)", "by features (%)", "n"), rows)


def table_shares(
    shares: Sequence[ScoreRecord], legend: Legend, differences: Sequence[Difference]
) -> Table:
    """Lay out how many images of each row are called copies, and how many beyond real slices."""
    findings = Findings((), (), tuple(differences))
    table = table_pivot(shares, legend, "Arm", ("n training slices", "n searched"))
    rows = []
    arms = dict.fromkeys(score.arm for score in shares)  # in the order of the rows
    for arm, cells in zip(arms, table.rows, strict=True):
        beyond = findings.difference(arm, REAL, COPIED)
        cell = MISSING
        if beyond is not None:
            ends = format_interval(beyond.low, beyond.high, SHARE)
            cell = f"{format_value(beyond.value, SHARE)} ({ends})"
        rows.append((*cells, cell))
    return Table.of((*table.head, f"beyond {legend.slices} (points)"), rows)


def draw_pairs(pairs: Sequence[tuple[Path, Path]]) -> Image.Image:
    """Compose pairs, one a column: the synthetic image above, its training slice below."""
    step = CELL_PX + GAP_PX
    canvas = Image.new("RGB", (max(1, len(pairs) * step - GAP_PX), 2 * step - GAP_PX), PAPER)
    for column, pair in enumerate(pairs):
        for row, path in enumerate(pair):
            tile = Image.fromarray(np.ascontiguousarray(read_cell(path)))
            offset = ((CELL_PX - tile.width) // 2, (CELL_PX - tile.height) // 2)
            canvas.paste(tile, (column * step + offset[0], row * step + offset[1]))
    return canvas


def describe_pairs(arm: str, pairs: Sequence[ClosestPair]) -> str:
    """Say which images a picture shows, and how near each pair is."""
    named = "; ".join(
        f"{pair.image} and {pair.train} (nearest by {pair.by}, correlation {pair.correlation:.2f}, "
        f"distance {pair.distance:.3g}{', called a copy' if pair.is_copy else ''})"
        for pair in pairs
    )
    return f"{arm}, above; the training slices, below. From left to right: {named}."


def read_closest(inputs: ReportInputs, facts: CopyFacts) -> list[tuple[str, Image.Image, str]]:
    """Compose each arm's closest pairs: its name, the picture and a caption."""
    train = {r.slice_id: inputs.preprocess.path(r.image_path) for r in inputs.preprocess.records()}
    drawn = []
    for arm, pairs in facts.closest.items():
        artifact = inputs.generate[arm]
        images = {r.image_id: artifact.path(r.image_path) for r in artifact.records()}
        paths = [(images[pair.image], train[pair.train]) for pair in pairs]
        drawn.append((arm, draw_pairs(paths), describe_pairs(arm, pairs)))
    return drawn


@dataclass(frozen=True)
class CopySection:
    """The search for copies: facts, shares by arm, and each arm's closest pairs."""

    facts: CopyFacts
    shares: Table
    recall: Table
    pictures: tuple[Chart, ...]


def lay_out_copies(
    inputs: ReportInputs, scores: Sequence[ScoreRecord], legend: Legend
) -> CopySection | None:
    """Lay out the search for copies; None where evaluate made none."""
    facts = read_copies(inputs.evaluate.manifest["notes"], legend.slices)
    if facts is None:
        return None
    shares = [score for score in scores if score.metric == COPIED]
    drawn = []
    for arm, image, caption in read_closest(inputs, facts):
        alt = f"images of {arm} above the training slices nearest to them"
        drawn.append(Chart(inline_image(image, alt, is_synthetic=True), caption))
    return CopySection(
        facts=facts,
        shares=table_shares(
            sort_by_kind(shares), legend, read_differences(inputs.evaluate.manifest["notes"]) or ()
        ),
        recall=table_recall(facts),
        pictures=tuple(drawn),
    )
