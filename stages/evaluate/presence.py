"""Presence corrected for the judge's error: how many images show a tumour, where it sees so many?

A judge that misses tumours, or sees some in slices without, is off in an arm's images too. Its
sensitivity and specificity are known of test slices that passed through the VAE of the arm's base
model, which is as near to generated images as slices with a known truth come; that it errs in
generated images as often as in these is assumed. With q the share in which a tumour is seen,

    share = (q + specificity - 1) / (sensitivity + specificity - 1)

Intervals carry all three errors, each with its effective sample size, and so how many subjects
without a tumour the judge was checked on.

Source: Rogan and Gladen, "Estimating prevalence from the results of a screening test", American
Journal of Epidemiology 1978; Lang and Reiczigel, "Confidence limits for prevalence of disease
adjusted for estimated sensitivity and specificity", Preventive Veterinary Medicine 2014.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.contracts import ALL, VAE
from stages.components.judge.agreement import spec_of
from stages.components.statistics.estimates import Estimate
from stages.components.statistics.proportions import effective_size
from stages.evaluate.scorer import Scorer

SPECS = {
    name: spec_of(f"{name}_corrected", f"share of images {words}, corrected for the judge's error")
    for name, words in {
        "sensitivity": "asked to show a tumour that show one",
        "specificity": "asked to show none that show none",
    }.items()
}
OneSided = Mapping[str, Estimate]  # "sensitivity" and "specificity" of one row


@dataclass(frozen=True)
class Rate:
    """A share, and how many independent images would make it vary as it does."""

    share: float
    size: float

    @classmethod
    def of(cls, estimate: Estimate) -> "Rate | None":
        """Read an estimate; None where it has no draws, so that nobody knows how it varies."""
        if not len(estimate.draws) or estimate.num_groups is None:
            return None
        values = np.concatenate([[estimate.value], estimate.draws])
        count = estimate.n_synthetic or estimate.n_real
        size = effective_size(values, count=count, num_groups=estimate.num_groups)
        return cls(estimate.value, size)

    @property
    def turned(self) -> "Rate":
        """The share of the others."""
        return Rate(1 - self.share, self.size)

    def padded(self, extra: float) -> "Rate":
        """Add as many imaginary images, half of them of either kind."""
        size = self.size + extra
        return Rate((self.share * self.size + extra / 2) / size, size)

    @property
    def variance(self) -> float:
        """Of the share."""
        return self.share * (1 - self.share) / self.size


def correct(
    seen: Rate, *, sensitivity: Rate, specificity: Rate, confidence: float
) -> tuple[float, float, float] | None:
    """Return the share of images that show a tumour, with its interval (Lang and Reiczigel, eq. 6).

    None where the judge sees tumours no more often in slices with one than in slices without.
    """
    from scipy.stats import norm

    if sensitivity.share + specificity.share <= 1:
        return None
    z = float(norm.ppf(0.5 + confidence / 2))
    value = _solve(seen, sensitivity, specificity)
    q, yes, no = seen.padded(z**2), sensitivity.padded(2), specificity.padded(2)
    if yes.share + no.share <= 1:
        return None
    share = _solve(q, yes, no)
    shift = 2 * z**2 * (share * yes.variance - (1 - share) * no.variance)
    variance = q.variance + share**2 * yes.variance + (1 - share) ** 2 * no.variance
    half = z * np.sqrt(variance) / (yes.share + no.share - 1)
    low, value, high = (
        float(np.clip(end, 0, 1)) for end in (share + shift - half, value, share + shift + half)
    )
    return min(low, value), value, max(high, value)


def _solve(seen: Rate, sensitivity: Rate, specificity: Rate) -> float:
    return (seen.share + specificity.share - 1) / (sensitivity.share + specificity.share - 1)


def add_corrected(
    scorer: Scorer, rows: Mapping[str, OneSided], bases: Mapping[str, str | None]
) -> None:
    """Add the corrected shares of every arm whose judge was checked through its VAE.

    Args:
        scorer: gets them.
        rows: what was read of arms and of real slices through a VAE.
        bases: the base model of each arm, as its VAE's row calls it.
    """
    for arm, base in bases.items():
        checked = {name: Rate.of(e) for name, e in rows.get(f"{VAE}{base}", {}).items()}
        sensitivity, specificity = (checked.get(name) for name in SPECS)
        if sensitivity is None or specificity is None:
            continue
        for name, estimate in rows.get(arm, {}).items():
            rate = Rate.of(estimate)
            if rate is None:
                continue
            is_asked_for = name == "sensitivity"
            ends = correct(
                rate if is_asked_for else rate.turned,
                sensitivity=sensitivity,
                specificity=specificity,
                confidence=scorer.config.confidence,
            )
            if ends is None:
                scorer.warn(
                    f"{arm}: the judge sees no more tumours in slices with one than in slices "
                    f"without ({VAE}{base}), so presence is not corrected for its error"
                )
                continue
            low, value, high = ends if is_asked_for else (1 - end for end in reversed(ends))
            corrected = Estimate(
                SPECS[name],
                value,
                low,
                high,
                np.zeros(0),
                estimate.n_real,
                estimate.n_synthetic,
                num_groups=estimate.num_groups,
                num_negative_groups=estimate.num_negative_groups,
            )
            scorer.add(arm, ALL, None, corrected)
