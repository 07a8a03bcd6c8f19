from collections import Counter

import pytest

from pipeline.contracts import LABELS, CaptionRecord, Label, PluginConfig, Split, TumorReport
from pipeline.errors import DataError
from pipeline.settings import GenerateConfig
from stages.generate.grid import build_grid, count_sizes, describe_sizes, share_out
from stages.generate.orders import build_orders

TRAINED = {
    "glioma": {"small": 32, "medium": 69, "large": 19},
    "meningioma": {"small": 51, "medium": 28, "large": 36},
    "pituitary": {"small": 85, "medium": 24, "large": 4},
}


def caption(
    label: Label, size: str | None, split: Split = "train", is_failed: bool = False
) -> CaptionRecord:
    return CaptionRecord(
        file_name="x.png",
        text="",
        slice_id="x",
        label=label,
        split=split,
        status="failed" if is_failed else "ok",
        report=None if is_failed else TumorReport(tumor=size is not None, size=size),
        raw="",
        num_tokens=0,
    )


def test_only_training_captions_that_name_a_size_count() -> None:
    captions = [
        *(caption("glioma", "large") for _ in range(3)),
        caption("glioma", "small"),
        caption("glioma", None),
        caption("glioma", "enormous"),
        caption("glioma", "small", "val"),
        caption("glioma", "small", is_failed=True),
        caption("notumor", None),
    ]
    assert count_sizes(captions) == {"glioma": {"small": 1, "large": 3}}


@pytest.mark.parametrize(
    ("label", "total", "expected"),
    [
        ("glioma", 48, {"small": 13, "medium": 28, "large": 7}),  # 12.8, 27.6 and 7.6
        ("pituitary", 3, {"small": 2, "medium": 1}),
        ("pituitary", 1, {"small": 1}),
        ("pituitary", 0, {}),
    ],
)
def test_sizes_are_asked_for_in_proportion(
    label: Label, total: int, expected: dict[str, int]
) -> None:
    found = share_out(TRAINED, label, total)
    assert len(found) == total
    assert Counter(found) == expected


@pytest.mark.parametrize("words", ["truth", "published"])
def test_the_grid_asks_as_told_and_stays_balanced_in_all_else(words) -> None:
    prompts = build_grid(LABELS, 192, 5, words, sizes=TRAINED)
    notes = describe_sizes(prompts, [caption("glioma", "large")])
    assert notes["asked"]["glioma"] == {"small": 13, "medium": 28, "large": 7}
    assert notes["asked"]["pituitary"] == {"small": 36, "medium": 10, "large": 2}
    assert notes["trained"] == {"glioma": {"large": 1}}
    gliomas = [prompt.report for prompt in prompts if prompt.label == "glioma"]
    for field in ("location", "orientation"):
        counts = Counter(getattr(report, field) for report in gliomas).values()
        assert max(counts) - min(counts) <= 1
    assert {prompt.report.size for prompt in prompts if prompt.label == "notumor"} == {None}
    if words == "published":
        assert all(str(report.size) in str(report.general_description) for report in gliomas)


def test_a_class_without_sizes_is_named() -> None:
    with pytest.raises(DataError, match=r"no training caption of class 'meningioma' names a size"):
        build_grid(("glioma", "meningioma"), 8, 0, sizes={"glioma": {"small": 1}})


def test_fewer_images_than_classes_need_no_sizes_of_the_rest() -> None:
    assert len(build_grid(("notumor", "glioma"), 1, 0, sizes={})) == 1


def test_orders_follow_the_setting() -> None:
    config = GenerateConfig(
        base_model=PluginConfig(name="tiny_sd15"),
        num_images=9,
        labels=("glioma",),
        prompt_style="structured",
        include_label=False,
    )
    captions = [caption("glioma", "large"), caption("glioma", "large"), caption("glioma", "small")]
    for change, expected in (
        ("balanced", {"small": 3, "medium": 3, "large": 3}),
        ("trained", {"small": 3, "large": 6}),
    ):
        orders = build_orders(config.model_copy(update={"grid_sizes": change}), captions, None, 0)
        assert Counter(order.prompt.report.size for order in orders) == expected
