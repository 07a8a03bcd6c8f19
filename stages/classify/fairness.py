"""Fairness: does a classifier treat the groups of a protected attribute alike? Three criteria.

Independence: it calls tumours as often in every group. Separation: it finds as many of the tumours,
and raises as many false alarms, in every group. Sufficiency: a call means the same in every group
(positive and negative predictive value). A gap is the largest difference between two groups; the
criteria cannot all hold where groups differ in how often they have tumours, so that share stands
beside them.

Source: Barocas, Hardt and Narayanan, "Fairness and Machine Learning", 2023, chapter 3; Hardt, Price
and Srebro, "Equality of Opportunity in Supervised Learning", NeurIPS 2016.
"""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.contracts import SliceRecord
from pipeline.errors import DataError
from pipeline.settings import ProtectedConfig
from stages.classify.diagnostics import Predictions
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.proportions import BoolArray

KEYS = ("slice_id", "subject_id")
# Criterion -> the rates that have to be equal.
CRITERIA = {
    "independence": ("called",),
    "separation": ("sensitivity", "false_positive_rate"),
    "sufficiency": ("positive_predictive_value", "negative_predictive_value"),
}
RATES = tuple(rate for rates in CRITERIA.values() for rate in rates)


def read_attribute(
    config: ProtectedConfig, records: Sequence[SliceRecord]
) -> tuple[str | None, ...]:
    """Read the attribute of each slice; None where the table does not say.

    Raises:
        DataError: The table is absent or another one, lacks a column, names a slice or subject
            twice, or says nothing of any slice.
    """
    path = Path(config.table).expanduser()
    if not path.is_file():
        raise DataError(f"classify.protected.table: no file {str(path)!r}; put the table there")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != config.sha256:
        raise DataError(
            f"classify.protected.sha256: {path} has {sha256}; write it there if this is the table "
            "that you mean"
        )
    rows = list(csv.DictReader(content.decode("utf-8-sig").splitlines()))
    columns = list(rows[0]) if rows else []
    key = next((name for name in KEYS if name in columns), None)
    if key is None or config.attribute not in columns:
        raise DataError(
            f"{path} has the columns {columns}, expected {config.attribute!r} and one of "
            f"{list(KEYS)}"
        )
    names = [row[key] for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} names {twice!r} more than once in {key}; keep one row of each")
    values = {row[key]: (row[config.attribute] or "").strip() or None for row in rows}
    read = tuple(values.get(str(getattr(record, key))) for record in records)
    if not any(read):
        raise DataError(
            f"{path} says nothing of the {len(records)} test slices; their {key} looks like "
            f"{getattr(records[0], key)!r}"
        )
    return read


def rate_draws(
    predictions: Predictions, rate: str, rows: BoolArray, weights: FloatArray
) -> FloatArray:
    """Return a rate among some rows in each draw, (draws, runs); NaN where nothing is counted."""
    called, truth = (
        predictions.called,
        np.broadcast_to(predictions.is_tumor, predictions.called.shape),
    )
    among, counted = {
        "called": (np.ones_like(called), called),
        "sensitivity": (truth, called),
        "false_positive_rate": (~truth, called),
        "positive_predictive_value": (called, truth),
        "negative_predictive_value": (~called, ~truth),
    }[rate]
    total = weights @ (among & rows).T.astype(float)
    with np.errstate(invalid="ignore"):
        draws: FloatArray = weights @ (among & counted & rows).T.astype(float) / total
    return draws


def gap_draws(
    predictions: Predictions, criterion: str, values: Sequence[str | None], weights: FloatArray
) -> FloatArray:
    """Return the largest gap of a criterion in each draw, a mean over runs, (draws,).

    NaN where a group has nothing to count, or where there are fewer than two groups.
    """
    groups = list_groups(values)
    if len(groups) < 2:
        return np.full(len(weights), np.nan)
    gaps = []
    for rate in CRITERIA[criterion]:
        each = np.stack([rate_draws(predictions, rate, rows, weights) for rows in groups.values()])
        gaps.append(each.max(axis=0) - each.min(axis=0))
    draws: FloatArray = np.max(gaps, axis=0).mean(axis=1)
    return draws


def list_groups(values: Sequence[str | None]) -> dict[str, BoolArray]:
    """Return the rows of each value of the attribute; slices without one are in no group."""
    names = sorted({value for value in values if value is not None})
    column = np.asarray(values, dtype=object)
    return {name: np.asarray(column == name, dtype=bool) for name in names}


def table_rates(
    predictions: Predictions, values: Sequence[str | None]
) -> dict[str, dict[str, float | int | None]]:
    """Return n, the share of tumours and every rate of each group, means over the runs."""
    once = np.ones((1, len(predictions.is_tumor)))
    rates: dict[str, dict[str, float | int | None]] = {}
    for name, rows in list_groups(values).items():
        rates[name] = {"n": int(rows.sum()), "tumours": float(predictions.is_tumor[rows].mean())}
        for rate in RATES:
            value = float(rate_draws(predictions, rate, rows, once).mean())
            rates[name][rate] = value if np.isfinite(value) else None
    return rates
