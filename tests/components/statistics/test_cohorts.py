"""What is drawn whole: subjects of real slices, prompts with their seeds, subjects of captions."""

from pipeline.contracts import (
    Artifact,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from stages.components.statistics import cohorts


def write_slices(root):
    root.mkdir()
    rows = [
        SliceRecord(
            slice_id=f"{subject}-{k}",
            subject_id=subject,
            group_id=subject,
            source="test",
            split="test",
            label="glioma",
            image_path="x.png",
            original="x",
            original_width_px=8,
            original_height_px=8,
        )
        for subject in ("anna", "berta")
        for k in range(2)
    ]
    write_records(root / "records.jsonl", rows)
    return Artifact(root, "p", SliceRecord, {})


def write_images(root, **prompts):
    """Images by name, each with the slice whose caption is its prompt, or an original."""
    root.mkdir()
    rows = [
        SyntheticRecord(
            image_id=name,
            image_path=f"{name}.png",
            prompt="a glioma",
            requested=TumorReport(),
            label="glioma",
            seed=0,
            adapter_digest=None,
            prompt_slice_id=source if source in ("anna-0", "anna-1", "berta-0") else None,
            counterfactual_of=source if source in prompts else None,
        )
        for name, source in prompts.items()
    ]
    write_records(root / "records.jsonl", rows)
    return Artifact(root, "g", SyntheticRecord, {})


def test_a_prompt_of_the_grid_is_its_own_unit_and_a_counterfactual_that_of_its_original(tmp_path):
    made = write_images(tmp_path / "g", a=None, b=None, turned="a")
    real = write_slices(tmp_path / "p")
    assert cohorts.find_units(made, real) == {"a": "a", "b": "b", "turned": "a"}
    assert [(i.name, i.group) for i in cohorts.list_synthetic(made, real)] == [
        ("a", "a"),
        ("b", "b"),
    ]


def test_prompts_that_are_captions_of_one_subject_are_drawn_together(tmp_path):
    made = write_images(tmp_path / "g", a="anna-0", b="anna-1", c="berta-0")
    groups = [item.group for item in cohorts.list_synthetic(made, write_slices(tmp_path / "p"))]
    assert groups == ["anna", "anna", "berta"]
