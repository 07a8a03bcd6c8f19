import pytest

from pipeline.contracts import TumorReport
from stages.components.tumor_report._prose import read_prose

GLIOMA = "The brain MRI shows a glioma, which is a type of brain tumor. "


def stated(text: str) -> dict[str, object]:
    return read_prose(text).model_dump(exclude={"general_description"}, exclude_none=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The tumor is located in the left frontal lobe, and it appears to be a large, round, "
            "and well-defined mass.",
            {"location": "frontal lobe", "side": "left", "size": "large", "shape": "round"},
        ),
        (
            "The tumor is located in the right frontal region of the brain. The size of the tumor "
            "is not specified, but the intensity is described as iso-intense, which means it has a "
            "signal intensity similar to the brain. The orientation of the MRI is axial.",
            {
                "location": "frontal lobe",
                "location_text": "right frontal region",
                "side": "right",
                "intensity": "isointense",
                "orientation": "axial",
            },
        ),
        (
            "The tumor is located in the brain region, and its size is described as small. The "
            "shape can be round, oval, or irregular.",
            {"size": "small"},
        ),
        (
            "The intensity of the tumor is described as hyperintense on T2-weighted images and "
            "hypointense on T1-weighted images.",
            {},
        ),
        ("The tumor has a size of small/medium/large, and is axial/saggital/coronal.", {}),
        ("The image provides information about the tumor's location, size and shape.", {}),
        ("Additionally, there is a mention of a small cyst in the left frontal lobe.", {}),
        ("There is a small amount of round, hyperintense peritumoral edema.", {}),
        ("The pituitary gland is a small, pea-sized gland located at the base of the brain.", {}),
        ("The orientation of the image (axial, sagittal, or coronal) can help.", {}),
        ("It is a large, heterogeneously enhancing mass.", {"size": "large"}),
        ("The intensity of the glioma is described as low.", {"intensity": "hypointense"}),
        ("It is a mixed-intensity mass.", {"intensity": "mixed"}),
        ("The tumor has a low intensity.", {"intensity": "hypointense"}),
        ("The tumor has areas of low intensity and areas of high intensity.", {}),
        ("It has a size of approximately 1.5 x 2 cm.", {"size": "1.5 x 2 cm"}),
        ("The tumor measures 30 mm and is a large mass.", {"size": "large"}),
        ("There is a midline shift of 5 mm.", {}),
    ],
)
def test_states_what_it_states_and_no_more(text: str, expected: dict[str, object]) -> None:
    assert stated(GLIOMA + text) == {"tumor": True, **expected}


@pytest.mark.parametrize(
    ("text", "tumor"),
    [
        ("The brain MRI image shows no tumor.", False),
        ("The brain MRI image does not show any signs of a tumor.", False),
        ("No visible masses are seen.", False),
        ("The brain MRI image appears to be normal.", False),
        ("The brain MRI shows a pituitary tumor.", True),
        ("A tumor may be visible on other images.", None),
        ("The image is a scan.", None),
    ],
)
def test_presence(text: str, tumor: bool | None) -> None:
    assert read_prose(text).tumor is tumor


def test_without_a_tumor_no_trait_is_read() -> None:
    text = "The image shows no tumor. It is a small, round mass of noise."
    assert read_prose(text) == TumorReport(tumor=False, general_description=text)


def test_a_pituitary_tumor_is_a_kind_and_a_tumor_in_its_region_is_placed() -> None:
    assert stated("The brain MRI shows a pituitary tumor.") == {"tumor": True}
    placed = stated("The brain MRI shows a tumor in the pituitary region.")
    assert placed["location"] == "sellar region"
    assert placed["location_text"] == "pituitary region"
