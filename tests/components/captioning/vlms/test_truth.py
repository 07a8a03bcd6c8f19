import pytest

from pipeline.contracts import SliceRecord, TumorReport
from pipeline.errors import DataError
from stages.components.captioning.vlms import truth
from stages.components.tumor_report.parsing import parse

REPORT = TumorReport(
    tumor=True,
    location="falx",
    side="unknown",
    size="large",
    shape="oval",
    intensity="mixed",
    orientation="sagittal",
    general_description="FLAIR sagittal brain MRI with a meningioma",
)
SLICE = SliceRecord(
    slice_id="s1",
    subject_id="p1",
    group_id="p1",
    source="phantom",
    split="train",
    label="meningioma",
    image_path="images/s1.png",
    original="p1.nii.gz",
    original_width_px=9,
    original_height_px=9,
    truth=REPORT,
)


def test_truth_is_read_back_exactly() -> None:
    captioner = truth.load(truth.Settings())
    [answer] = captioner.describe([SLICE], [])
    assert isinstance(answer, str)
    assert parse(answer) == REPORT


def test_a_slice_without_truth_is_an_error() -> None:
    item = SLICE.model_copy(update={"truth": None, "source": "kaggle"})
    with pytest.raises(DataError, match="slice 's1' of source 'kaggle' has no ground truth"):
        truth.load(truth.Settings()).describe([item], [])
