"""Numbers, durations and names as the page writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

PERCENT_METRICS = frozenset(
    {"accuracy", "sensitivity", "specificity", "balanced_accuracy", "copied_share", "copy_recall"}
    | {f"{name}_at_operating_point" for name in ("accuracy", "sensitivity", "specificity")}
    | {f"class_{name}" for name in ("accuracy", "sensitivity", "balanced_accuracy")}
    | {f"{name}_gap" for name in ("independence", "separation", "sufficiency")}
    | {"lesion_share", "lesion_share_by_chance"}
    | {
        f"location_{field}"
        for field in (
            *("presence", "sensitivity", "specificity", "side"),
            *("region", "size", "shape", "intensity", "orientation", "side_flip"),
        )
    }
    | {
        f"recaption_{field}"
        for field in (
            *("tumor", "type", "location", "side"),
            *("size", "shape", "intensity", "orientation"),
        )
    }
)
METRIC_NAMES = {
    "kid": "KID",
    "fid": "FID",
    "fid_infinity": "FID at infinity",
    "vgg_fd": "VGG FD",
    "vgg_kid_biased": "VGG KID, biased",
    "ms_ssim": "MS-SSIM",
    "ms_ssim_within_prompt": "MS-SSIM within a prompt",
    "clip_score": "CLIP score",
    "clip_score_gain": "CLIP score over other prompts",
    "copied_share": "Called copies",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "brier": "Brier score",
    "class_auroc": "Class AUROC",
    "class_auprc": "Class AUPRC",
    "class_ece": "Class ECE",
    "class_brier": "Class Brier score",
    "psnr": "PSNR (dB)",
    "location_side_flip": "Tumour moves with the prompt",
    "location_dice": "Dice of the judge",
}
MISSING = "–"
MAX_LISTED = 12  # entries of a list before the rest is only counted


def format_value(value: float | None, metric: str) -> str:
    """Write a score with the digits its metric deserves; percentages for shares.

    >>> format_value(-0.01234, "kid"), format_value(0.8, "accuracy"), format_value(None, "fid")
    ('−0.0123', '80.0', '–')
    """
    if value is None:
        return MISSING
    if metric in PERCENT_METRICS:
        return _minus(f"{100 * value:.1f}")
    if metric.startswith("kid"):
        return _minus(f"{value:.4f}")
    return _minus(f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}")


def format_interval(low: float | None, high: float | None, metric: str) -> str:
    """Write an interval, or nothing where there is none."""
    if low is None or high is None:
        return MISSING
    return f"{format_value(low, metric)} to {format_value(high, metric)}"


def format_p(p: float | None) -> str:
    """Write a p, which is never 0.

    >>> format_p(0.01), format_p(0.00002), format_p(None)
    ('0.01', '< 0.001', '–')
    """
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def format_metric(metric: str) -> str:
    """Name a metric for readers, with its unit where it is a percentage.

    >>> format_metric("kid"), format_metric("accuracy"), format_metric("gap_closed")
    ('KID', 'Accuracy (%)', 'Gap closed')
    """
    name = METRIC_NAMES.get(metric, format_key(metric))
    return f"{name} (%)" if metric in PERCENT_METRICS else name


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
    """Write any JSON value of a manifest on one line; long lists are cut and counted."""
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
    return str(value)


def _minus(text: str) -> str:
    return text.replace("-", "−")
