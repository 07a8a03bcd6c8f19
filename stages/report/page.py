"""Page: a jinja2 template with everything inlined, so that the file needs nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources

import jinja2
from markupsafe import Markup

from pipeline.contracts import Licence
from stages.report.claims.parts import Claim
from stages.report.notices import Limit
from stages.report.numbers import Legend
from stages.report.objections import Objection
from stages.report.pictures import Chart
from stages.report.sections.captions import CaptionTable
from stages.report.sections.classifier import ClassifierSection, Confusion
from stages.report.sections.copies import CopySection
from stages.report.sections.explanations import ExplanationSection
from stages.report.sections.images import GridBlock
from stages.report.sections.location import LocationSection
from stages.report.sections.summary import Summary
from stages.report.tables import Panel, Table, table_evidence


@dataclass(frozen=True)
class Page:
    """Everything the template prints, in the order it prints it."""

    title: str
    experiment: str
    summary: Summary
    chart: Chart | None
    facts: Mapping[str, str]
    scope: str
    claims: tuple[Claim, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    grid: tuple[GridBlock, ...]
    grid_words: str
    shared_prompts: tuple[tuple[str, tuple[str, ...]], ...]
    score_charts: tuple[Chart, ...]
    score_tables: tuple[Panel, ...]
    by_group: tuple[tuple[str, tuple[Panel, ...]], ...]  # (class or plane, its score tables)
    gap_table: Table | None
    location: LocationSection
    copies: CopySection | None
    audit: tuple[Panel, ...]
    captions: tuple[CaptionTable, ...]
    captions_missing: tuple[str, ...]
    caption_notes: tuple[Panel, ...]
    curves: tuple[Chart, ...]
    classifier: ClassifierSection
    confusions: tuple[Confusion, ...]
    explanations: ExplanationSection | None
    stages: Table
    versions: Table
    methods: tuple[tuple[str, str], ...]
    unequal: Table
    settings: tuple[tuple[str, tuple[Panel, ...]], ...]
    intended_use: str
    limits: tuple[Limit, ...]
    objections: tuple[Objection, ...]
    licences: tuple[Licence, ...]
    legend: Legend  # of the scores


def render_page(page: Page) -> str:
    """Render the page; every value is escaped. Deterministic."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["table_evidence"] = partial(table_evidence, legend=page.legend)
    template = environment.from_string(_read_resource("template.html"))
    return template.render(page=page, style=_read_style())


def _read_style() -> Markup:
    return Markup(_read_resource("style.css"))  # our own file, not a user's text


def _read_resource(name: str) -> str:
    return (resources.files(__package__ or "") / name).read_text(encoding="utf-8")
