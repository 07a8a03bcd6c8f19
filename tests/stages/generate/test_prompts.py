from collections import Counter
from typing import Any, get_args

import pytest

from pipeline.contracts import LABELS, CaptionRecord, Label, TumorReport
from pipeline.errors import ConfigError, DataError
from stages.components.tumor_report.mirroring import mirror_words
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.words import INTENSITIES, REGIONS, SHAPES, SIZES
from stages.generate.grid import (
    INTENSITY_OF,
    MODALITIES,
    PUBLISHED_APPEARANCES,
    TRUTH_APPEARANCES,
    Words,
    build_grid,
)
from stages.generate.prompts import Prompt, prompts_from_captions, swap_side

WORDS: tuple[Words, ...] = get_args(Words)


def count_words(text: str) -> int:
    return len(text.split()) + 2


def spread(values: list[object]) -> int:
    counts = Counter(values)
    return max(counts.values()) - min(counts.values())


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("num_images", [1, 4, 37, 240])
def test_classes_differ_by_one_at_most_in_every_run(words: Words, num_images: int) -> None:
    prompts = build_grid(LABELS, num_images, 3, words)
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts) == num_images
    for stop in range(4, num_images, 5):
        assert spread([prompt.label for prompt in prompts[:stop]]) <= 1


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("label", ["glioma", "meningioma"])
def test_factors_are_balanced(words: Words, label: Label) -> None:
    reports = [prompt.report for prompt in build_grid((label,), 101, 5, words)]
    for field in ("location", "size", "orientation"):
        assert spread([getattr(report, field) for report in reports]) <= 1
    for plane in ("axial", "coronal"):
        sides = [report.side for report in reports if report.orientation == plane]
        assert set(sides) == {"left", "right"}
        assert spread(list(sides)) <= 1


@pytest.mark.parametrize("words", WORDS)
def test_only_combinations_that_exist(words: Words) -> None:
    for prompt in build_grid(LABELS, 400, 11, words):
        report = prompt.report
        assert report.tumor is (prompt.label != "notumor")
        if prompt.label == "notumor":
            assert report.location is report.side is report.size is None
            continue
        if report.orientation == "sagittal":
            assert report.side == "unknown"
        if prompt.label == "pituitary":
            assert report.location == "sellar region"
            assert report.side in ("midline", "unknown")


def test_tables_use_the_closed_lists() -> None:
    for kinds in (TRUTH_APPEARANCES, PUBLISHED_APPEARANCES):
        assert set(kinds) == set(LABELS) - {"notumor"}
        for kind in kinds.values():
            assert set(kind.regions) <= set(REGIONS)
            assert set(kind.shapes) <= set(SHAPES)
            assert set(kind.sizes) <= set(SIZES)
    for row in INTENSITY_OF.values():
        assert len(row) == len(MODALITIES)
        assert set(row) <= set(INTENSITIES)


def test_truth_words_name_class_contrast_and_plane() -> None:
    prompts = build_grid(LABELS, 160, 2)
    contrasts: Counter[str] = Counter()
    for prompt in prompts:
        text = prompt.report.general_description or ""
        assert str(prompt.report.orientation) in text
        assert ("without a tumor" in text) is (prompt.label == "notumor")
        contrasts[text.split(" brain")[0].rpartition(" ")[0]] += 1
    assert len(contrasts) == 4
    assert set(contrasts.values()) == {40}


def test_published_words_are_those_of_the_captions() -> None:
    prompts = build_grid(LABELS, 400, 2, "published", include_label=True)
    texts = {prompt.label: prompt.render("structured", count_words) for prompt in prompts}
    assert "location: pituitary;" in texts["pituitary"]
    assert "general description: pituitary tumor. Brain MRI shows a " in texts["pituitary"]
    assert "general description: no tumor. " in texts["notumor"]
    planes = Counter(p.report.orientation for p in prompts if p.label == "notumor")
    assert planes == {"axial": 80, "coronal": 10, "sagittal": 10}


@pytest.mark.parametrize("words", WORDS)
def test_prompts_render_and_read_back(words: Words) -> None:
    for prompt in build_grid(LABELS, 80, 7, words):
        text = prompt.render("structured", count_words)
        report = prompt.report
        side = None if report.side == "unknown" else report.side
        assert parse(text) == report.model_copy(update={"side": side})
        assert report.size is None or report.size in SIZES


@pytest.mark.parametrize("words", WORDS)
def test_the_other_side_changes_nothing_else(words: Words) -> None:
    for prompt in build_grid(LABELS, 160, 7, words):
        other = swap_side(prompt)
        if prompt.report.side not in ("left", "right"):
            assert other is None
            continue
        assert other is not None
        assert other.prompt_id == f"{prompt.prompt_id}-other-side"
        text, swapped = (p.render("structured", count_words) for p in (prompt, other))
        assert swapped == mirror_words(text) != text
        assert {prompt.report.side, other.report.side} == {"left", "right"}
        assert parse(swapped) == other.report
        back = swap_side(other)
        assert back is not None
        assert back.report == prompt.report


def test_words_of_a_caption_are_not_swapped() -> None:
    report = TumorReport(tumor=True, side="left")
    assert swap_side(Prompt("a", "glioma", report, "as written, on the left")) is None


def test_one_seed_repeats_and_two_differ() -> None:
    assert build_grid(LABELS, 50, 1) == build_grid(LABELS, 50, 1)
    assert build_grid(LABELS, 50, 1) != build_grid(LABELS, 50, 2)


def test_label_only_prompts_name_the_class() -> None:
    prompt = build_grid(("glioma",), 1, 0)[0]
    assert prompt.render("label_only", count_words) == "brain MRI, glioma"


def caption(number: int, label: Label, split: Any = "test", status: Any = "ok") -> CaptionRecord:
    return CaptionRecord(
        file_name=f"images/{number}.png",
        text=f"text {number}",
        slice_id=f"s{number}",
        label=label,
        split=split,
        status=status,
        report=TumorReport(tumor=True),
        raw="",
        num_tokens=4,
    )


def test_prompts_from_test_captions_take_them_in_turn_word_for_word() -> None:
    captions = [caption(1, "glioma"), caption(2, "glioma"), caption(3, "pituitary")]
    captions += [caption(4, "glioma", "train"), caption(5, "pituitary", status="failed")]
    prompts = prompts_from_captions(captions, ("glioma", "pituitary"), 6, 0)
    assert [prompt.label for prompt in prompts] == ["glioma", "pituitary"] * 3
    assert {prompt.prompt_id for prompt in prompts[:4:2]} == {"s1-0", "s2-0"}
    assert [prompt.prompt_id for prompt in prompts[1::2]] == ["s3-0", "s3-1", "s3-2"]
    assert {prompt.slice_id for prompt in prompts[1::2]} == {"s3"}
    assert prompts[1].render("sentence", count_words) == "text 3"
    assert prompts == prompts_from_captions(captions, ("glioma", "pituitary"), 6, 0)


def test_a_class_without_test_captions_is_an_error() -> None:
    with pytest.raises(DataError, match="no test slice of class 'meningioma' has a caption"):
        prompts_from_captions([caption(1, "glioma")], ("glioma", "meningioma"), 4, 0)


def test_no_class_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"generate\.labels: expected a class, found \(\)"):
        build_grid((), 4, 0)
    with pytest.raises(ConfigError, match=r"generate\.labels: expected a class, found \(\)"):
        prompts_from_captions([], (), 4, 0)


def test_a_prompt_with_a_text_is_used_as_it_is() -> None:
    prompt = Prompt("a", "glioma", TumorReport(tumor=True), "as written")
    assert prompt.render("structured", count_words) == "as written"
