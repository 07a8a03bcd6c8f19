"""Poster: one A1 page of the run as PDF and PNG, set by typst from `facts.json` alone.

The report writes what the poster shows into `facts.json`; no number stands in the template. Text
from data reaches typst as JSON strings, which are text and never markup. Fonts are matplotlib's, so
the same facts give the same bytes everywhere.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import typst
from matplotlib import get_data_path

from pipeline.contracts import LABELS, SPLITS
from pipeline.errors import DataError
from stages.report.arms import Arm
from stages.report.artifacts import ReportInputs
from stages.report.claims.evidence import Findings
from stages.report.numbers import SHARE, format_any, format_value
from stages.report.page import Page
from stages.report.pictures import Chart
from stages.report.sections.location import COLUMNS, PREFIX
from stages.report.tables import Table

FACTS, PICTURES = "facts.json", "poster"
MAX_CHARTS = 2  # KID and FID on the deciding features
TRIAL_PPI = 5  # to count pages
PNG_PPI = 60  # 1,403 x 1,986 px
Facts = dict[str, Any]


def gather_facts(page: Page, inputs: ReportInputs, findings: Findings) -> Facts:
    """Gather what the poster shows, as JSON values; pictures are named, not held."""
    return {
        "title": page.title,
        "experiment": page.experiment,
        "intended_use": page.intended_use,
        "run": dict(page.facts),
        "sentences": list(page.summary.sentences),
        "slices": page.legend.slices,
        "counts": asdict_table(table_counts(inputs)),
        "arms": asdict_table(table_arms(findings.arms)),
        "sides": asdict_table(page.summary.sides),
        "attributes": asdict_table(table_attributes(inputs, findings)),
        "scores": [
            {"title": title, "table": asdict_table(narrow(table))}
            for title, table in page.score_tables[:1]
        ],
        "classifiers": [
            {"title": title, "table": asdict_table(narrow(table))}
            for title, table in page.classifier.scores[:1]
        ],
        "charts": [chart.caption for chart in _list_charts(page)],
        "grid": [{"name": block.name, "labels": list(block.labels)} for block in page.grid],
        "grid_words": page.grid_words,
        "claims": [
            {**{key: getattr(claim, key) for key in ("number", "text", "verdict", "why")},
             "strength": claim.strength}
            for claim in page.claims
        ],
        "limits": [list(limit) for limit in page.limits],
        "command": f"mrisynth run --config configs/{page.experiment}.yaml",
    }  # fmt: skip


def list_pictures(page: Page) -> dict[str, bytes]:
    """List the pictures of the poster, by file name."""
    charts = {f"chart-{i}.svg": chart.picture.content for i, chart in enumerate(_list_charts(page))}
    grid = {f"grid-{i}.png": block.picture.content for i, block in enumerate(page.grid)}
    return charts | grid


def _list_charts(page: Page) -> list[Chart]:
    return [chart for chart in (page.chart, *page.score_charts) if chart is not None][:MAX_CHARTS]


def asdict_table(table: Table | None) -> Mapping[str, Any] | None:
    """Turn a table into JSON values."""
    if table is None:
        return None
    return {**asdict(table), "numeric": sorted(table.numeric)}


def narrow(table: Table) -> Table:
    """Put each value of a table of scores and its interval into one column, and drop the rest."""
    columns = [i - 1 for i, name in enumerate(table.head) if name == "interval"]
    rows = (
        (row[0], *(f"{row[i]} ({row[i + 1].partition(';')[0]})" for i in columns))
        for row in table.rows
    )
    return Table.of((table.head[0], *(table.head[i] for i in columns)), rows)


def table_counts(inputs: ReportInputs) -> Table:
    """Count slices by class and split."""
    rows = [(record.label, record.split) for record in inputs.preprocess.records()]
    return Table.of(
        ("", *SPLITS),
        (
            (label, *(format_any(rows.count((label, split))) for split in SPLITS))
            for label in LABELS
        ),
    )


def table_arms(arms: Sequence[Arm]) -> Table:
    """Lay out what each arm is."""
    return Table(
        ("Arm", "Captions by", "Base model", "Rank", "Text encoder"),
        tuple(
            (
                arm.name,
                format_any(arm.vlm),
                format_any(arm.base_model),
                format_any(arm.lora_rank),
                "trained" if arm.train_text_encoder else "frozen",
            )
            for arm in arms
        ),
    )


def table_attributes(inputs: ReportInputs, findings: Findings) -> Table | None:
    """Lay out how often each field is as asked, and by chance; None where no judge looked."""
    recorded = (inputs.evaluate.manifest["notes"].get("location") or {}).get("fields") or {}
    rows = []
    for arm in findings.arms:
        cells = [arm.name]
        for _, field in COLUMNS:
            score = findings.score(arm.name, PREFIX + field)
            chance = recorded.get(arm.name, {}).get(field, {}).get("chance")
            share = format_value(None if score is None else score.value, SHARE)
            cells.append(share if score is None else f"{share} ({format_value(chance, SHARE)})")
        if any(cell != cells[1] for cell in cells[2:]) or cells[1] != format_value(None, SHARE):
            rows.append(tuple(cells))
    if not rows:
        return None
    return Table.of(("% as asked (by chance)", *(name for name, _ in COLUMNS)), rows)


def write_poster(root: Path, facts: Facts, pictures: Mapping[str, bytes]) -> None:
    """Write `facts.json`, the poster's pictures, `poster.pdf` and `poster.png`.

    Where the page would be too full, charts and then blocks of the grid are left out from the end
    until it holds; the poster says so.

    Args:
        root: the report's artifact.
        facts: what `gather_facts` gave.
        pictures: by file name, as `list_pictures` gave them.

    Raises:
        DataError: It does not fit one page even without a grid, or typst warns.
    """
    folder = root / PICTURES
    folder.mkdir(exist_ok=True)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    (root / FACTS).write_text(text, encoding="utf-8")
    choices = [
        (num_blocks, num_charts)
        for num_blocks in range(len(facts["grid"]), 1, -1)
        for num_charts in range(len(facts["charts"]), -1, -1)
    ]
    for choice in choices or [(0, 0)]:
        if isinstance(set_poster(root, *choice, format="png", ppi=TRIAL_PPI), bytes):
            pdf = set_poster(root, *choice, format="pdf", timestamp=0)
            (root / "poster.pdf").write_bytes(pdf)
            png = set_poster(root, *choice, format="png", ppi=PNG_PPI)
            (root / "poster.png").write_bytes(png)
            return
    raise DataError(
        f"the poster of {len(facts['arms']['rows'])} arms does not fit one page; leave arms out "
        "with --arm"
    )


def set_poster(root: Path, num_blocks: int, num_charts: int, **options: Any) -> Any:
    """Set the poster with its first blocks and charts; as PNG a list, where pages are several.

    Raises:
        DataError: typst warns, for example of a font that is not there.
    """
    fonts = typst.Fonts(
        include_system_fonts=False, font_paths=[str(Path(get_data_path()) / "fonts" / "ttf")]
    )
    compiler = typst.Compiler(
        resources.files(__package__ or "").joinpath("poster.typ").read_bytes(),
        root=str(root),
        font_paths=fonts,
        ignore_system_fonts=True,
        sys_inputs={"blocks": str(num_blocks), "charts": str(num_charts)},
    )
    made, warnings = compiler.compile_with_warnings(**options)
    if warnings:
        raise DataError(f"the poster cannot be set: {'; '.join(w.message for w in warnings)}")
    return made
