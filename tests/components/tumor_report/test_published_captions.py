"""The captions that the poster's authors published, as a test corpus (not in the repository)."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pipeline.contracts import PluginConfig, TumorReport
from pipeline.errors import DataError
from stages.components.diffusion.tokens import load_tokenizers, token_counter
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.rendering import Style, render

FOLDER = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "captions"
# A value as a simple reader sees it: what stands behind `key:` up to the next semicolon.
STATED = re.compile(r"(?:^|[;—] ?)(location|size|shape|intensity|orientation): ([^;]+)", re.I)
NOTHING = {"n/a", "none", "unknown", "unclear", "not specified", "not applicable"}

# SHA-256 over every report, as JSON, a line each. A change means that captions are read otherwise:
# it is named in CHANGELOG.md with the number of texts and why the old reading was false.
DIGESTS = {
    "gemini": "1c983e649e95f440015ca1c94c74d89a99f2748f315a1fd0a13d59ad4d9820de",
    "gemma": "77baec9217a8b28bacb4f4a9a9b7cda5242ad092279c276ef476458ab1841cf3",
    "llava_med": "c8b1ddd5e5949224b16f878a5c2fc7f851f78b53c50306495b2d00549f13bf1e",
    "ovis": "a47b27435160d5098e73efca018c942f9f753bee822bec8f5f273b6738bc01c7",
}

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the published captions are not at {FOLDER}"
)


@cache
def read_named(name: str) -> list[tuple[str, str]]:
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [(row["file_name"], row["text"]) for row in rows]


def read(name: str) -> list[str]:
    return [text for _, text in read_named(name)]


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


@pytest.mark.parametrize("name", DIGESTS)
def test_published_captions_read_as_they_did(name: str) -> None:
    digest = hashlib.sha256()
    for report in parse_all(read(name)):
        line = json.dumps(report and report.model_dump(), sort_keys=True, ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    assert digest.hexdigest() == DIGESTS[name]


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


# Read by hand, with some 70 others, and found to be all that the prose states. By file name, since
# the corpus is not ours to copy.
BY_HAND: dict[str, dict[str, object]] = {
    "glioma/Tr-gl_0198": {},  # "can provide information about the location, size, shape"
    "pituitary/Tr-pi_0332": {"size": "small"},  # "located in the brain region"
    "pituitary/Tr-pi_0582": {"location": "sellar region"},  # "a small, pea-sized gland" is no size
    "pituitary/Tr-pi_0495": {"side": "right"},  # "the right cavernous sinus"
    "pituitary/Tr-pi_0990": {
        "location": "sellar region",
        "size": "small",
        "shape": "round",
        "orientation": "axial",
    },
    "glioma/Tr-gl_0053": {  # beside "a small left frontal lobe lesion"
        "location": "frontal lobe",
        "side": "right",
        "size": "medium",
        "shape": "irregular",
        "intensity": "mixed",
        "orientation": "axial",
    },
    "glioma/Tr-gl_0160": {  # low on T1 and high on T2: nothing about this slice
        "location": "frontal lobe",
        "side": "left",
        "size": "small",
        "shape": "round",
    },
    "glioma/Tr-gl_0847": {
        "location": "frontal lobe",
        "side": "right",
        "size": "1.5 cm",
        "shape": "lobulated",
        "intensity": "isointense",
        "orientation": "axial",
    },
    "meningioma/Tr-me_0332": {
        "location": "frontal lobe",
        "side": "right",
        "size": "small",
        "shape": "round",
        "intensity": "hypointense",
        "orientation": "axial",
    },
    "meningioma/Tr-me_0560": {"intensity": "hyperintense", "orientation": "coronal"},
    "meningioma/Tr-me_0214": {"size": "large", "orientation": "axial"},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_prose_states_what_was_read_by_hand(name: str) -> None:
    text = dict(read_named("llava_med"))[f"Training/{name}.jpg"]
    report = parse(text).model_dump(
        exclude={"general_description", "location_text"}, exclude_none=True
    )
    assert report == {"tumor": True, **BY_HAND[name]}


def test_prose_that_denies_a_tumor_states_nothing_else() -> None:
    texts = [text for name, text in read_named("llava_med") if "/notumor/" in name]
    reports = [report for report in parse_all(texts) if report is not None]
    assert sum(report.tumor is False for report in reports) / len(texts) > 0.99
    assert not any(report.size or report.location for report in reports if not report.tumor)


@pytest.fixture(scope="module")
def count_tokens() -> Callable[[str], int]:
    return token_counter(load_tokenizers(PluginConfig(name="tiny_sdxl")))


@pytest.mark.parametrize("style", ["structured", "sentence"])
@pytest.mark.parametrize("name", ["gemini", "gemma", "ovis", "llava_med"])
def test_rendering_fits_the_real_tokenizers(
    name: str, style: Style, count_tokens: Callable[[str], int]
) -> None:
    """Fields stand in the text word for word; only descriptions shrink."""
    texts = [text for text in read(name)[::60] if try_parse(text) is not None]
    lengths = []
    for text in texts:
        report = try_parse(text)
        assert report is not None
        rendered = render(report, style, count_tokens)
        lengths.append(count_tokens(rendered))
        values = (report.size, report.shape, report.intensity, report.location_text)
        if report.tumor:
            assert all(value in rendered for value in values if value), rendered
    assert max(lengths) <= 77
    if name == "llava_med":
        assert sum(count_tokens(text) > 77 for text in texts) > len(texts) / 2


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
