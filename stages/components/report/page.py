"""The page: a jinja2 template with everything inlined, so that the file needs nothing else."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources

import jinja2
from markupsafe import Markup

from pipeline.contracts import Licence
from stages.components.report.captions import CaptionTable
from stages.components.report.claim_parts import Claim
from stages.components.report.classifier import ClassifierSection
from stages.components.report.copies import CopyFacts
from stages.components.report.location import LocationSection
from stages.components.report.numbers import Legend
from stages.components.report.tables import Panel, Table, table_evidence


@dataclass(frozen=True)
class Picture:
    """An inlined image with words for those who cannot see it."""

    source: str  # a data: URI
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class GridBlock:
    """One block of the image grid, with its classes and the prompts of its rows."""

    name: str
    picture: Picture
    labels: tuple[str, ...]
    prompts: tuple[tuple[str, tuple[str, ...]], ...]  # (class, prompts from top to bottom)


@dataclass(frozen=True)
class Chart:
    """A chart with its caption."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class CopySection:
    """The search for copies: facts, shares by arm, and each arm's closest pairs."""

    facts: CopyFacts
    shares: Table
    recall: Table
    pictures: tuple[Chart, ...]


@dataclass(frozen=True)
class ExplanationSection:
    """What classifiers look at: words, scores of the maps, and the maps."""

    words: str
    table: Table
    pictures: tuple[Chart, ...]


@dataclass(frozen=True)
class Confusion:
    """Counts of one classifier on the test slices."""

    name: str
    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


@dataclass(frozen=True)
class Page:
    """Everything the template prints, in the order it prints it."""

    title: str
    experiment: str
    facts: Mapping[str, str]
    scope: str
    claims: tuple[Claim, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    grid: tuple[GridBlock, ...]
    shared_prompts: tuple[tuple[str, tuple[str, ...]], ...]
    score_charts: tuple[Chart, ...]
    score_tables: tuple[Panel, ...]
    class_table: Table
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
    limits: tuple[str, ...]
    notice: str | None
    citations: tuple[str, ...]
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


def to_data_uri(content: bytes, media_type: str) -> str:
    """Inline bytes as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _read_style() -> Markup:
    return Markup(_read_resource("style.css"))  # our own file, not a user's text


def _read_resource(name: str) -> str:
    return (resources.files(__package__ or "") / name).read_text(encoding="utf-8")
