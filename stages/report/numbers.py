"""Numbers, durations and names as the page writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.contracts import AT_CUT, AUROC_WITHIN_CONTRAST, BASE, REAL, VAE, ScoreStyle
from pipeline.files import portable_name

PLAIN, SHARE = ScoreStyle(), ScoreStyle(is_share=True)
PROPORTIONS = ("accuracy", "sensitivity", "specificity")
# The closed set of what classify scores; metrics of evaluate speak for themselves.
OF_CLASSIFY = {
    **dict.fromkeys(PROPORTIONS, SHARE),
    **{name + AT_CUT: SHARE for name in PROPORTIONS},
    **dict.fromkeys(("balanced_accuracy", "class_accuracy", "class_sensitivity"), SHARE),
    **dict.fromkeys(("class_balanced_accuracy", "lesion_share", "lesion_share_by_chance"), SHARE),
    **dict.fromkeys(("independence_gap", "separation_gap", "sufficiency_gap"), SHARE),
    "auroc": ScoreStyle(name="AUROC"),
    AUROC_WITHIN_CONTRAST: ScoreStyle(name="AUROC within contrast"),
    "auprc": ScoreStyle(name="AUPRC"),
    "ece": ScoreStyle(name="ECE"),
    "brier": ScoreStyle(name="Brier score"),
    "class_auroc": ScoreStyle(name="Class AUROC"),
    "class_auprc": ScoreStyle(name="Class AUPRC"),
    "class_ece": ScoreStyle(name="Class ECE"),
    "class_brier": ScoreStyle(name="Class Brier score"),
}
MISSING = "–"
MAX_LISTED = 12  # entries of a list before the rest is only counted


def format_value(value: float | None, style: ScoreStyle) -> str:
    """Write a score with the digits it deserves; percentages for shares.

    >>> format_value(-0.01234, ScoreStyle(digits=4)), format_value(0.8, SHARE)
    ('−0.0123', '80.0')
    >>> format_value(12.345, PLAIN), format_value(None, PLAIN)
    ('12.35', '–')
    """
    if value is None:
        return MISSING
    if style.is_share:
        return _minus(f"{100 * value:.1f}")
    if style.digits is not None:
        return _minus(f"{value:.{style.digits}f}")
    return _minus(f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}")


def format_interval(low: float | None, high: float | None, style: ScoreStyle) -> str:
    """Write an interval, or nothing where there is none."""
    if low is None or high is None:
        return MISSING
    return f"{format_value(low, style)} to {format_value(high, style)}"


class Legend:
    """How each score of a run is shown: as its maker says, else by its key alone.

    >>> legend = Legend({"kid": ScoreStyle(name="KID")}, "reference phantoms")
    >>> legend.name("kid"), legend.name("accuracy"), legend.name("gap_closed")
    ('KID', 'Accuracy (%)', 'Gap closed')
    >>> legend.row("real"), legend.row("base/tiny_sdxl"), legend.row("vae/tiny_sdxl")
    ('reference phantoms', 'tiny_sdxl, no LoRA', 'VAE of tiny_sdxl alone')
    """

    def __init__(self, styles: Mapping[str, ScoreStyle], slices: str = REAL) -> None:
        self._styles = {**OF_CLASSIFY, **styles}
        self.slices = slices  # what readers call slices that nobody generated

    @classmethod
    def of(cls, notes: Mapping[str, Any], slices: str = REAL) -> "Legend":
        """Read the notes of evaluate; an artifact without any leaves the keys."""
        recorded = notes.get("scores") or {}
        return cls({key: ScoreStyle.model_validate(row) for key, row in recorded.items()}, slices)

    def __getitem__(self, metric: str) -> ScoreStyle:
        return self._styles.get(metric, PLAIN)

    def row(self, arm: str) -> str:
        """Name a row of scores for readers."""
        if arm.startswith(BASE):
            return f"{arm.removeprefix(BASE)}, no LoRA"
        if arm.startswith(VAE):
            return f"VAE of {arm.removeprefix(VAE)} alone"
        return self.slices if arm == REAL else arm

    def name(self, metric: str) -> str:
        """Name a score for readers, with its unit where it is a percentage."""
        style = self[metric]
        name = style.name or format_key(metric)
        return f"{name} (%)" if style.is_share else name


def format_p(p: float | None) -> str:
    """Write a p, which is never 0.

    >>> format_p(0.01), format_p(0.00002), format_p(None)
    ('0.01', '< 0.001', '–')
    """
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def format_groups(num_groups: int | None, num_negative_groups: int | None) -> str:
    """Write how many groups an interval draws, and how many of them have no tumour.

    >>> format_groups(28, 7), format_groups(96, None), format_groups(None, None)
    ('28 (7 without tumour)', '96', '–')
    """
    if num_negative_groups is None:
        return format_any(num_groups)
    return f"{format_any(num_groups)} ({format_any(num_negative_groups)} without tumour)"


def format_key(key: str) -> str:
    """Turn a key into words: `num_skipped` becomes "Num skipped"."""
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def format_seconds(seconds: float | None) -> str:
    """Write a duration.

    >>> format_seconds(0.41), format_seconds(61), format_seconds(7384)
    ('0.4 s', '1 min 1 s', '2 h 3 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_any(value: Any) -> str:
    """Write any JSON value of a manifest on one line; long lists are cut and counted.

    Of a folder of this machine only its own name is shown.

    Example:
        >>> format_any({"model": "/home/someone/weights/sdxl", "plane": "axial"})
        'model: sdxl, plane: axial'
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _minus(f"{value:.4g}")
    if isinstance(value, int):
        return _minus(f"{value:,}")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_any(item)}" for key, item in value.items()) or MISSING
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(format_any(item) for item in value[:MAX_LISTED])
        more = f" … ({len(value):,} in all)" if len(value) > MAX_LISTED else ""
        return f"{shown}{more}" or MISSING
    return portable_name(str(value))


def _minus(text: str) -> str:
    return text.replace("-", "−")
