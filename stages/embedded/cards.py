"""Cards of the embedded models: how each was made and how good it is, from measured scores."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from pipeline.contracts import INTENDED_USE
from pipeline.files import publish_folder
from stages.components.phantoms.notice import ICBM152_CITATIONS, ICBM152_NOTICE

NONE = "–"  # there is no such number


def word_share(value: float | None) -> str:
    """Write a share with three decimals."""
    return NONE if value is None else f"{value:.3f}"


def word_interval(estimate: Mapping[str, Any]) -> str:
    """Write a share with its interval; there is none of very few subjects.

    >>> word_interval({"value": 0.912, "low": 0.85, "high": 0.95})
    '0.912 [0.850, 0.950]'
    """
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return word_share(value)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def render_card(
    template: str,
    *,
    name: str,
    facts: Mapping[str, Any],
    held_out: Sequence[Mapping[str, Any]] = (),
    **words: Any,
) -> str:
    """Render a card; the same facts give the same bytes.

    Args:
        template: "base", "vlm" or "judge".
        name: the model's.
        facts: settings and measurements, JSON values; `image_size` in px is one of them.
        held_out: rows of the table of held-out accuracy.
        words: what else the template asks for.

    Raises:
        jinja2.UndefinedError: The template asks for a word that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(share=word_share, interval=word_interval)
    return environment.get_template(f"card_{template}.md.j2").render(
        name=name,
        image_size=facts["image_size"],
        facts=json.dumps(facts, indent=2),
        held_out=held_out,
        intended_use=INTENDED_USE,
        notice=ICBM152_NOTICE,
        citations=ICBM152_CITATIONS,
        **words,
    )


def write_card(
    folder: Path,
    template: str,
    *,
    name: str,
    facts: Mapping[str, Any],
    held_out: Sequence[Mapping[str, Any]] = (),
    **words: Any,
) -> None:
    """Write `README.md` and `training.json` into the model's folder; see `render_card`."""
    made = {**facts, "held_out": list(held_out)} if held_out else facts
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    card = render_card(template, name=name, facts=facts, held_out=held_out, **words)
    (folder / "README.md").write_text(card, encoding="utf-8")


def publish(partial: Path, final: Path) -> None:
    """Rename a finished folder into place; what stood there goes once the new one is whole."""
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # left by a killed build
    if final.exists():
        final.rename(old)
    publish_folder(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def _read_template(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
