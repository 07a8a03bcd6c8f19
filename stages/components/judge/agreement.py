"""Agreement of images with their prompts, read by a judge: field by field, with chance beside it.

An image is right in a field where the judge finds what the prompt asked for. Where the judge finds
no tumour, every field of a tumour is wrong, but for the side: that is left against right, of the
images in which a tumour is seen, as in captions (`tumor_report.agreement`). So a generator that
draws its midline tumours rightly gains nothing by them, and one that draws none loses in presence
alone. Chance is what the same answers would reach if they were dealt out at random among the
prompts; "commonest" always gives the commonest request. Intervals come from draws of whole groups
(`cohorts`): prompts, which arms share, or subjects of real slices.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.contracts import Label, TumorReport
from pipeline.seeding import numpy_rng
from stages.components.statistics.bootstrap import MIN_GROUPS, FloatArray, resample
from stages.components.statistics.estimates import MetricSpec
from stages.components.tumor_report.agreement import (
    agreement_of,
    is_counted,
    read_field,
    read_known,
)

NONE = "none"  # the judge finds no tumour, or does not say
# A field as it is called here, and in a report.
FIELDS = {
    "presence": "tumor",
    "side": "side",
    "region": "location",
    "size": "size",
    "shape": "shape",
    "intensity": "intensity",
    "orientation": "orientation",
}
ONE_SIDED = {"sensitivity": "yes", "specificity": "no"}  # parts of presence: what was asked for
OPPOSITE = {"left": "right", "right": "left"}
LEAST_N = 2


@dataclass(frozen=True)
class JudgedImage:
    """What was requested of one image, or is true of one slice, and what the judge reads in it."""

    name: str
    group: str
    label: Label
    plane: str
    requested: TumorReport
    predicted: TumorReport


@dataclass(frozen=True)
class Row:
    """One field of one image: what was requested, what was read.

    One that does not count stays in its place, so that arms share the draws of their prompts.
    """

    requested: str
    predicted: str
    group: str
    counts: bool = True

    @property
    def is_right(self) -> bool:
        """Whether it was done as told."""
        return self.requested == self.predicted


@dataclass(frozen=True)
class Measured:
    """One field over the n images that count.

    Attributes:
        share: of right ones, itself and in each draw (1 + num_draws,); NaN in a draw of none.
        chance: the same of answers dealt at random.
        commonest: the commonest request, and `majority`, its share.
        n: images, of `num_groups` groups.
    """

    share: FloatArray
    chance: FloatArray
    commonest: str
    majority: float
    n: int
    num_groups: int


def spec_of(name: str, citation: str, *, title: str = "", is_share: bool = True) -> MetricSpec:
    """Return the spec of a location score; more is better."""
    key = f"location_{name}"
    return MetricSpec(
        key=key,
        higher_is_better=True,
        least_n=LEAST_N,
        citation=citation,
        names={key: title} if title else {},
        is_share=is_share,
    )


def list_rows(answers: Sequence[JudgedImage], field: str) -> list[Row]:
    """List the images that were asked for a field, in their order.

    Args:
        answers: all images.
        field: of `FIELDS`, or "sensitivity" or "specificity", the presence of those asked to have
            a tumour and of those asked to have none.
    """
    rows = []
    for answer in answers:
        name = FIELDS["presence" if field in ONE_SIDED else field]
        requested = read_known(answer.requested, name)
        if requested is None or ONE_SIDED.get(field, requested) != requested:
            continue
        predicted = read_field(answer.predicted, name) or NONE
        counts = is_counted(answer.predicted, name)
        rows.append(Row(requested, predicted, answer.group, counts))
    return rows


def measure(
    rows: Sequence[Row], *, num_draws: int, seed_parts: tuple[int | str, ...]
) -> Measured | None:
    """Measure the rows that count; None where they are fewer than `LEAST_N`.

    Rows of the same groups in the same order share their draws, whichever of them count. There are
    none where those that count are of fewer than `MIN_GROUPS` groups.
    """
    counted = [row for row in rows if row.counts]
    if len(counted) < LEAST_N:
        return None
    num_groups = len({row.group for row in counted})
    requests = sorted({row.requested for row in rows})
    places = {value: place for place, value in enumerate(requests)}
    drawn = resample(
        np.zeros((len(rows), 1)),
        [row.group for row in rows],
        num_draws=num_draws if num_groups >= MIN_GROUPS else 0,
        rng=numpy_rng(*seed_parts),
    )
    counts = np.zeros((drawn.weights.shape[1], len(requests), len(requests) + 1))
    for row, group in zip(rows, drawn.groups, strict=True):
        if row.counts:
            counts[group, places[row.requested], places.get(row.predicted, len(requests))] += 1
    share, chance, _ = agreement_of(np.tensordot(drawn.weights, counts, axes=1))
    (commonest, most), *_ = Counter(row.requested for row in counted).most_common()
    return Measured(share, chance, commonest, most / len(counted), len(counted), num_groups)


def count_pairs(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Count what was found for each request: the confusion matrix, sorted by name."""
    answers = sorted({row.predicted for row in rows} | {row.requested for row in rows})
    counts = Counter((row.requested, row.predicted) for row in rows)
    return {
        request: {name: counts[request, name] for name in answers}
        for request in sorted({row.requested for row in rows})
    }


def list_flips(originals: Mapping[str, JudgedImage], turned: Sequence[JudgedImage]) -> list[Row]:
    """Pair images with their counterfactuals: equal but for the side that was asked for.

    A pair is right where the tumour is found on the side asked for in both, so it has moved with
    the prompt, and counts where one is seen in both. Pairs without a left and a right are left out,
    and so are those without a partner.

    Args:
        originals: images by name.
        turned: counterfactual images, each named after its original.
    """
    rows = []
    for answer in turned:
        first = originals.get(answer.name)
        if first is None or OPPOSITE.get(first.requested.side or "") != answer.requested.side:
            continue
        sides = [read_field(item.predicted, "side") or NONE for item in (first, answer)]
        requested = f"{first.requested.side} to {answer.requested.side}"
        counts = all(is_counted(item.predicted, "side") for item in (first, answer))
        rows.append(Row(requested, f"{sides[0]} to {sides[1]}", first.group, counts))
    return rows


def chance_of_flips(rows: Sequence[Row]) -> float:
    """Return the share of pairs, of at least one that counts, that would move by chance.

    If no image heeded its own prompt, the two of a pair would lie where images of their kind lie at
    all: the share of originals on the first side times that of counterfactuals on the second.
    """
    rows = [row for row in rows if row.counts]
    firsts = Counter(row.predicted.split(" to ")[0] for row in rows)
    seconds = Counter(row.predicted.split(" to ")[1] for row in rows)
    requests = [row.requested.split(" to ") for row in rows]
    return float(np.mean([firsts[a] * seconds[b] for a, b in requests]) / len(rows) ** 2)
