"""Differences between arms, and the share of the gap to its VAE that an arm closed."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.contracts import GAP_CLOSED
from stages.components.statistics.bootstrap import interval
from stages.components.statistics.estimates import Estimate, MetricSpec, make_estimate
from stages.components.statistics.proportions import difference_interval


def difference(first: Estimate, second: Estimate, *, confidence: float) -> dict[str, Any]:
    """Return `first - second` with the interval of paired draws, as a JSON object.

    `num_groups` is that of the score that has fewer.
    """
    value = first.value - second.value
    num_draws = min(len(first.draws), len(second.draws))
    draws = first.draws[:num_draws] - second.draws[:num_draws]
    num_groups = min((e.num_groups for e in (first, second) if e.num_groups), default=None)
    if first.spec.is_share and num_groups is not None:
        values = np.concatenate([[value], draws])
        ends = difference_interval(values, num_groups=num_groups, confidence=confidence)
    else:
        ends = interval(
            draws, confidence=confidence, centre=value if first.spec.is_biased else None
        )
    low, high = ends
    row = {"metric": first.spec.key, "value": value, "low": low, "high": high}
    return {**row, "num_groups": num_groups}


def all_differences(
    estimates: Mapping[str, Estimate], arms: Sequence[str], *, confidence: float
) -> dict[str, dict[str, Any]]:
    """Return the differences of all pairs of arms, keyed "a - b" in the arms' order.

    Pairs whose draws say nothing of a spread are left out: they have no interval.
    """
    rows = {
        f"{a} - {b}": difference(estimates[a], estimates[b], confidence=confidence)
        for a, b in combinations(arms, 2)
    }
    return {pair: row for pair, row in rows.items() if row["low"] is not None}


GAP = MetricSpec(
    key=GAP_CLOSED,
    higher_is_better=True,
    least_n=2,
    citation="(kid of the base model - kid of the arm) / (kid of the base model - kid of its vae)",
)


def gap_closed(
    *, arm: Estimate, base: Estimate, vae: Estimate, confidence: float
) -> Estimate | None:
    """Return the share of the way from the base model to its VAE that an arm went.

    0: no nearer to real slices than the base model; 1: as near as real slices that only passed
    through the VAE. The interval is that of the ratio in paired draws. None where the base model is
    already as near as its VAE, since the share then means nothing.
    """
    if base.value <= vae.value:
        return None
    num_draws = min(len(arm.draws), len(base.draws), len(vae.draws))
    stacked = [np.concatenate([[e.value], e.draws[:num_draws]]) for e in (arm, base, vae)]
    room = stacked[1] - stacked[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (stacked[1] - stacked[0]) / room
    values = np.concatenate([values[:1], values[1:][room[1:] > 0]])
    return make_estimate(
        GAP,
        values,
        num_groups=arm.num_groups or 0,
        confidence=confidence,
        n_real=arm.n_real,
        n_synthetic=arm.n_synthetic,
    )
