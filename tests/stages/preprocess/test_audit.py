from pipeline.contracts import SliceRecord
from stages.preprocess.audit import describe_splits


def record(split, label, number, modality):
    name = f"{split}-{label}-{number}"
    return SliceRecord(
        slice_id=f"{name}-{modality}", subject_id=name, group_id=name, source="s", split=split,
        label=label, modality=modality, image_path="i.png", original="o", original_width_px=8,
        original_height_px=8,
    )  # fmt: skip


def test_groups_and_contrasts_of_each_split_are_counted():
    records = [
        record("train", "glioma", 0, "t2"), record("train", "glioma", 0, "t1"),
        record("train", "glioma", 1, "t2"), record("train", "notumor", 0, "t2"),
        record("test", "notumor", 0, "unknown"),
    ]  # fmt: skip
    notes = describe_splits(records)
    assert notes["groups"] == {"train": 3, "val": 0, "test": 1}
    assert notes["groups_per_class"]["train"] == {
        "notumor": 1, "glioma": 2, "meningioma": 0, "pituitary": 0,
    }  # fmt: skip
    assert notes["share_of_tumors_by_contrast"] == {
        "train": {"t1": 1.0, "t2": 0.667}, "val": {}, "test": {},
    }  # fmt: skip


def test_too_few_groups_without_a_tumor_are_warned_of():
    def warn(count):
        return describe_splits([record("test", "notumor", n, "t1") for n in range(count)])

    assert warn(20)["warnings"] == []
    (line,) = warn(19)["warnings"]
    assert line.startswith("the test split has 19 groups (subjects) without a tumour")
