"""Captions as VLMs write them, each with all that it states; and texts made to hang a parser."""

import json
import subprocess
import sys
from typing import Any

import pytest

from pipeline.errors import DataError
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.schema import json_schema

FAILS: dict[str, Any] = {}  # states nothing: a failure
# Text, and every field but the place's own words and the description.
CASES: list[tuple[str, dict[str, Any]]] = [
    (
        "This coronal MRI doesn't show any tumor.",
        {"tumor": False, "orientation": "coronal"},
    ),
    ("I cannot determine whether a tumor is present in this image.", FAILS),
    (
        "I'm sorry, but I can't provide a medical diagnosis or say whether there is a tumor.",
        FAILS,
    ),
    (
        "Status post resection of a meningioma. No residual or recurrent tumor is seen.",
        {"tumor": False},
    ),
    (json.dumps(json_schema()), FAILS),
    (
        "tumor: yes/no; location: left/right frontal lobe; size: small/medium/large",
        FAILS,
    ),
    (
        "A round extra-axial mass is seen along the right convexity.",
        {"tumor": True, "location": "convexity", "side": "right", "shape": "round"},
    ),
    (
        "tumor: yes; location: right frontal lobe with midline shift to the left",
        {"tumor": True, "location": "frontal lobe", "side": "right"},
    ),
    (  # of several the first; sizes in figures count where the text says that they are sizes
        "There is a 2 cm mass in the left frontal lobe and a smaller mass in the right cerebellum.",
        {"tumor": True, "location": "frontal lobe", "side": "left"},
    ),
    (
        "tumor: yes; location: cerebello\u2011pontine angle",
        {"tumor": True, "location": "cerebellopontine angle"},
    ),
    (
        "tumor: yes; intensity: low-grade enhancement",
        {"tumor": True, "intensity": "low-grade enhancement"},
    ),
    ('{"tumor": false, "location": "temporal lobe", "size": "large"}', {"tumor": False}),
    (
        "1. Tumor: Yes\n2. Location: Right temporal lobe\n3. Size: Large\n4. Shape: Irregular",
        {
            "tumor": True,
            "location": "temporal lobe",
            "side": "right",
            "size": "large",
            "shape": "irregular",
        },
    ),
    (
        "| Tumor | yes |\n| Location | left parietal lobe |\n| Size | small |",
        {"tumor": True, "location": "parietal lobe", "side": "left", "size": "small"},
    ),
    (
        "tumor=yes, location=left occipital lobe, orientation=axial",
        {"tumor": True, "location": "occipital lobe", "side": "left", "orientation": "axial"},
    ),
    ("Location – left CPA", {"location": "cerebellopontine angle", "side": "left"}),
    (
        "A lesion is visible in the right thalamus.",
        {"tumor": True, "location": "thalamus", "side": "right"},
    ),
    (
        "Two metastases in the left hemisphere, in the frontal lobe.",
        {"tumor": True, "location": "frontal lobe", "side": "left"},
    ),
    (
        "Pituitary macroadenoma with suprasellar extension, coronal view.",
        {"tumor": True, "location": "sellar region", "orientation": "coronal"},
    ),
    (
        "A cystic mass with surrounding edema is located in the right cerebellar hemisphere.",
        {"tumor": True, "location": "cerebellum", "side": "right"},
    ),
    (
        "The mass in the right frontal lobe causes midline shift.",
        {"tumor": True, "location": "frontal lobe", "side": "right"},
    ),
    (
        "A left-sided frontal lobe tumor measures 3 cm.",
        {"tumor": True, "location": "frontal lobe", "side": "left", "size": "3 cm"},
    ),
    (
        "The lesion is in the left hemisphere (viewer's right), in the frontal lobe.",
        {"tumor": True, "location": "frontal lobe", "side": "unknown"},
    ),
    ("tumor: not present", {"tumor": False}),
    ("tumor: not visible", {"tumor": False}),
    ("The scan is within normal limits.", {"tumor": False}),
    ("The image may show a mass near the falx.", {"location": "falx"}),
    (
        "tumor: yes; location: Lt. parietal lobe",
        {"tumor": True, "location": "parietal lobe", "side": "left"},
    ),
    (
        "An intra-axial tumor on this coronal slice.",
        {"tumor": True, "orientation": "coronal"},
    ),
    (
        "Tumor: ja; Lokalisation: linker Frontallappen",
        {"tumor": True, "location": "frontal lobe", "side": "left"},
    ),
    (
        "tumor: sí; ubicación: lóbulo temporal derecho",
        {"tumor": True, "location": "temporal lobe", "side": "right"},
    ),
    (
        "tumor: yes; location: left temporal lobe; size: large; shape: irregular; "
        "intensity: hyperintense; orientation: axial; general description: A mass.",
        {
            "tumor": True,
            "location": "temporal lobe",
            "side": "left",
            "size": "large",
            "shape": "irregular",
            "intensity": "hyperintense",
            "orientation": "axial",
        },
    ),
    (
        '```json\n{"tumor": true, "location": "frontal lobe", "side": "left",}\n```',
        {"tumor": True, "location": "frontal lobe", "side": "left"},
    ),
    ("No evidence of tumor, mass or hemorrhage.", {"tumor": False}),
    (
        "**Tumor:** Yes **Location:** Right Occipital Lobe",
        {"tumor": True, "location": "occipital lobe", "side": "right"},
    ),
    ("TUMOR: YES; LOCATION: N/A; SIZE: N/A", {"tumor": True}),
    (
        "The tumor is located in the right frontal lobe, and it is large. " * 80,
        {"tumor": True, "location": "frontal lobe", "side": "right", "size": "large"},
    ),
    (
        "Sagittal T1 with contrast: homogeneous enhancing sellar mass.",
        {"tumor": True, "location": "sellar region", "orientation": "sagittal"},
    ),
    ("Normal coronal brain MRI.", {"tumor": False, "orientation": "coronal"}),
    ("... !!! ---", FAILS),
]


def read(text: str) -> dict[str, Any]:
    try:
        report = parse(text)
    except DataError:
        return FAILS
    return report.model_dump(exclude={"general_description", "location_text"}, exclude_none=True)


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_text_states_this_and_no_more(text: str, expected: dict[str, Any]) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":' * 3000 + '{"tumor": true}' + "}" * 3000, FAILS),
        ("[" * 3000 + "]" * 3000, FAILS),
        ('{"tumor":' * 3000 + "1" + "}" * 3000, FAILS),
        ("tumor: yes\ud800; si\x00ze: sm\x1ball", {"tumor": True, "size": "small"}),
        ("x" * 1_000_000, FAILS),
        ("<think>Is there a tumor? No.</think>tumor: yes", {"tumor": True}),
        ("<think>There is a tumor", FAILS),
    ],
    ids=["nested", "lists", "keys", "marks", "long", "thinking", "thinking_only"],
)
def test_odd_texts_are_read_or_refused(text: str, expected: dict[str, Any]) -> None:
    assert read(text) == expected


def test_a_caption_too_long_is_refused() -> None:
    with pytest.raises(DataError, match="has 200001 characters: expected at most 200000"):
        parse("x" * 200_001)


@pytest.mark.parametrize("depth", [100, 300, 480, 900, 990, 1100])
def test_no_depth_of_json_is_a_traceback(depth: int) -> None:
    assert read('{"a":' * depth + "1" + "}" * depth) == FAILS


def test_what_is_read_can_be_written() -> None:
    parse("tumor: yes; general description: \ud800 a brain").model_dump_json()


def test_runs_of_one_character_end() -> None:
    """Twenty of them on a budget of a second each: two adjacent quantifiers took hours.

    In a process of its own, which the system ends after so many seconds of CPU time.
    """
    code = """
import resource
from pipeline.errors import DataError
from stages.components.tumor_report.parsing import parse
spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
resource.setrlimit(resource.RLIMIT_CPU, (spent + 20, spent + 20))
for character in "\\n* :;{}[]()\\"'-–.,|=a":
    try:
        parse(character * 100_000)
    except DataError:
        pass
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "text",
    [
        "It is unlikely that a tumor is present.",
        "The tumor appears to have been removed.",
        "A tumor cannot be excluded.",
        "Is there a tumor in this image?",
        "Please provide the image of the tumor.",
        "The ventricles are normal.",
        "The right frontal lobe contains no tumor.",
        "There is a large left subdural hematoma.",
        "There are ischemic lesions.",
        "There is mass effect on the left ventricle.",
        "No lesion larger than 3 mm.",
        "The tumor previously seen in the left frontal lobe is no longer visible.",
        "The likelihood of a tumor is low.",
        "Tumor probability: 5%",
        "Tumor type: none",
        "No other tumor is seen.",
        "The size of the tumor is not visible.",
        "tumor: [yes/no]; location: [location]",
        "tumor: not sure; location: <brain region>",
    ],
)
def test_what_is_doubted_partial_or_another_finding_states_nothing(text: str) -> None:
    assert read(text) == FAILS


@pytest.mark.parametrize(
    "text",
    [
        "Neither a tumor nor a hemorrhage is seen.",
        "There is a lack of any tumor.",
        "A tumor is absent.",
        "The tumor isn\u2019t clearly seen.",
        "Kein Hinweis auf einen Tumor.",
        "No se observa tumor.",
        "tumor -> no",
        "Tumor detected: no",
        "Is there a mass: no",
        '{"tumor_detected": false}',
        "### Tumor\nNo\n### Location\nNone",
        "| **Tumor** | **No** |",
        "<table><tr><td>Tumor</td><td>No</td></tr></table>",
        "<b>Tumor:</b> no<br><b>Size:</b> n/a",
        "Answer: tumor: no; size: n/a",
        '{"tumor": 0, "location": "left frontal lobe"}',
        "tumor: No mass lesion identified.",
        "The image shows a healthy brain.",
    ],
)
def test_what_is_denied_is_no_tumor(text: str) -> None:
    assert read(text) == {"tumor": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The tumor is not large.", {}),
        (
            "A tumor measuring 25 mm × 20 mm in the brainstem.",
            {"size": "25 mm × 20 mm", "location": "brainstem"},
        ),
        ("A mass in the right (image left) frontal lobe.", {"side": "unknown"}),
        ("There is no doubt that a tumor is present.", {}),
        ("The absence of a midline shift suggests that the tumor is benign.", {}),
        ("The tumor has not spread to the right hemisphere.", {}),
        ("Large tumor. No round lesions.", {"size": "large"}),
        (
            "There are no lesions except a small mass in the right parietal lobe.",
            {"size": "small", "location": "parietal lobe", "side": "right"},
        ),
        (
            "No tumor is seen on the left. There is a mass in the right frontal lobe.",
            {"location": "frontal lobe", "side": "right"},
        ),
        (
            "A small tumor with no midline shift is seen in the left occipital lobe.",
            {"size": "small", "location": "occipital lobe", "side": "left"},
        ),
        (
            "A tumor in the right hemisphere of the cerebellum.",
            {"location": "cerebellum", "side": "right"},
        ),
        (
            "Es zeigt sich eine große Raumforderung im linken Frontallappen.",
            {"size": "large", "location": "frontal lobe", "side": "left"},
        ),
        (
            "tumor: yes; location: left frontal lobe, no involvement of the right",
            {"location": "frontal lobe", "side": "left"},
        ),
        (
            "tumor: yes; location: left frontal lobe with edema extending to the right hemisphere",
            {"location": "frontal lobe", "side": "left"},
        ),
        ("tumor: yes; location: frontal or temporal lobe", {}),
        ("tumor: yes; orientation: not axial", {}),
        (
            "| Tumor | Location | Size |\n|---|---|---|\n| yes | left frontal lobe | small |",
            {"location": "frontal lobe", "side": "left", "size": "small"},
        ),
        (
            "Tumor:\nYes\nLocation:\nLeft temporal lobe",
            {"location": "temporal lobe", "side": "left"},
        ),
    ],
)
def test_cues_reach_to_the_end_of_their_scope(text: str, expected: dict[str, Any]) -> None:
    assert read(text) == {"tumor": True, **expected}
