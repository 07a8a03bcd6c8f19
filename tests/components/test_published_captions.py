"""The captions that the poster's authors published, as a test corpus (not in the repository)."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from pipeline.contracts import TumorReport
from pipeline.errors import DataError
from stages.components.tumor_report import parse, render

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "captions"
# A value as a simple reader sees it: what stands behind `key:` up to the next semicolon.
STATED = re.compile(r"(?:^|[;—] ?)(location|size|shape|intensity|orientation): ([^;]+)", re.I)
NOTHING = {"n/a", "none", "unknown", "unclear", "not specified", "not applicable"}

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the published captions are not at {FOLDER}"
)


@cache
def read(name: str) -> list[str]:
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@cache
def try_parse(text: str) -> TumorReport | None:
    try:
        return parse(text)
    except DataError:
        return None


def parse_all(texts: list[str]) -> list[TumorReport | None]:
    return [try_parse(text) for text in texts]


def is_whole(text: str, report: TumorReport | None) -> bool:
    """Tell whether every field that the text states came out."""
    if report is None or report.tumor is not text.lower().startswith("tumor: yes"):
        return False
    head = re.split(r"general[ _]description:", text, flags=re.I)[0]
    for field, value in STATED.findall(head):
        if value.strip().lower() in NOTHING or value.lower().startswith("not "):
            continue
        place = report.location_text or report.location
        if (place if field.lower() == "location" else getattr(report, field.lower())) is None:
            return False
    return bool(report.general_description) or len(text) < 20


@pytest.mark.parametrize("name", ["gemini", "gemma", "ovis"])
def test_structured_captions_parse_with_every_field(name: str) -> None:
    texts = read(name)
    reports = parse_all(texts)
    whole = sum(map(is_whole, texts, reports))
    assert len(texts) > 5000
    assert whole / len(texts) >= 0.995


def test_prose_states_little() -> None:
    texts = read("llava_med")
    reports = [report for report in parse_all(texts) if report is not None]
    assert len(reports) / len(texts) >= 0.995
    stated = Counter(
        field
        for report in reports
        for field, value in report
        if value is not None and field != "location_text"
    )
    # Most of it is template: "the image provides information about the tumor's location, ...".
    assert 0.05 < stated["size"] / len(texts) < 0.15
    assert stated["orientation"] / len(texts) < 0.05
    assert stated["side"] / len(texts) < 0.10
    assert sum(report.tumor is not None for report in reports) == len(reports)


@pytest.mark.parametrize("name", ["gemini", "gemma", "ovis", "llava_med"])
def test_rendered_captions_read_back(name: str) -> None:
    for report in parse_all(read(name)[::20]):
        if report is not None:
            text = render(report, "structured", lambda text: len(text.split()), 60)
            unread = {"general_description"}
            if report.orientation is None:  # may be named by prose that the parser did not trust
                unread.add("orientation")
            again, kept = parse(text).model_dump(exclude=unread), report.model_dump(exclude=unread)
            assert again == kept, text
