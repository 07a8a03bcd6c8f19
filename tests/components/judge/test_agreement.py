"""The arithmetic of doing as told: shares, chance, confusion, intervals, and pairs that flip."""

import numpy as np
import pytest

from pipeline.contracts import TumorReport
from stages.components.judge.agreement import (
    JudgedImage,
    Row,
    chance_of_flips,
    count_pairs,
    list_flips,
    list_rows,
    measure,
    spec_of,
)
from stages.components.statistics.estimates import make_estimate

SPEC = spec_of("side", "for tests")
NO_TUMOR = TumorReport(tumor=False, orientation="axial")


def report(side="left", **changes):
    return TumorReport(tumor=True, side=side, size="small", orientation="axial", **changes)


def answer(name, asked, found):
    return JudgedImage(name, name, "glioma", "axial", asked, found)


def rows_of(*pairs):
    return [Row(asked, found, str(number)) for number, (asked, found) in enumerate(pairs)]


def share(rows, **changes):
    measured = measure(rows, num_draws=200, seed_parts=(0, "test"))
    given = {"num_groups": measured.num_groups, "confidence": 0.95, "n_real": 3} | changes
    return make_estimate(SPEC, measured.share, n_synthetic=measured.n, **given)


def test_a_field_counts_where_it_was_asked_for():
    answers = [
        answer("a", report("left"), report("left")),
        answer("b", report("right"), report("left")),
        answer("c", report("right"), NO_TUMOR),
        answer("d", report("unknown"), report("left")),  # a sagittal slice
        answer("e", NO_TUMOR, report("left")),
        answer("f", report("midline"), report("midline")),  # a region, and no side
        answer("g", report("left"), report("midline")),
    ]
    sides = [(row.requested, row.predicted, row.counts) for row in list_rows(answers, "side")]
    assert sides == [
        ("left", "left", True),
        ("right", "left", True),
        ("right", "none", False),  # no tumour is seen: a matter of presence
        ("left", "midline", True),
    ]
    presence = [row.requested + row.predicted for row in list_rows(answers, "presence")]
    assert presence == ["yesyes", "yesyes", "yesno", "yesyes", "noyes", "yesyes", "yesyes"]
    assert len(list_rows(answers, "sensitivity")) == 6
    assert [row.predicted for row in list_rows(answers, "specificity")] == ["yes"]
    assert [row.predicted for row in list_rows(answers, "size")] == [
        "small",
        "small",
        "none",
        *["small"] * 3,
    ]
    assert list_rows(answers, "region") == []


def test_a_judge_that_always_says_left_is_at_chance():
    rows = rows_of(*[("left", "left"), ("right", "left")] * 10)
    measured = measure(rows, num_draws=200, seed_parts=(0, "test"))
    assert measured.share[0] == measured.chance[0] == 0.5
    assert np.allclose(measured.share, measured.chance)
    assert (measured.n, measured.num_groups, measured.majority) == (20, 20, 0.5)
    found = share(rows)
    assert found.low < 0.5 < found.high
    assert (found.n_real, found.n_synthetic) == (3, 20)


def test_chance_of_mixed_answers_is_the_sum_of_products():
    rows = rows_of(("left", "left"), ("left", "none"), ("left", "right"), ("right", "right"))
    measured = measure(rows, num_draws=0, seed_parts=(0, "test"))
    assert measured.share[0] == 0.5
    assert measured.chance[0] == pytest.approx(0.75 * 0.25 + 0.25 * 0.5)
    assert (measured.commonest, measured.majority) == ("left", 0.75)


def test_groups_are_drawn_whole():
    rows = [Row("left", "left" if k < 5 else "right", f"g{k}") for k in range(10)]
    often = [row for row in rows for _ in range(8)]
    few, many = share(rows), share(often)
    assert (few.low, few.high) == (many.low, many.high)
    assert many.n_synthetic == 80


def test_all_right_is_not_certainty():
    found = share(rows_of(*[("left", "left")] * 20))
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.820, abs=1e-3)  # Wilson's of 20 of 20, with t's quantile
    nothing = share(rows_of(*[("left", "none")] * 20))
    assert nothing.low == 0
    assert nothing.high == pytest.approx(0.180, abs=1e-3)


def test_few_groups_have_no_interval():
    found = share(rows_of(*[("left", "left")] * 3))
    assert (found.value, found.low, found.high) == (1, None, None)


def test_one_row_is_too_few():
    assert measure(rows_of(("left", "left")), num_draws=0, seed_parts=(0, "test")) is None
    unseen = [Row("left", "none", str(k), counts=k == 0) for k in range(9)]
    assert measure(unseen, num_draws=0, seed_parts=(0, "test")) is None


def test_few_groups_that_count_have_no_draws():
    rows = [Row("left", "left", str(k), counts=k < 4) for k in range(9)]
    measured = measure(rows, num_draws=20, seed_parts=(0, "test"))
    assert (measured.n, measured.num_groups, len(measured.share)) == (4, 4, 1)


def test_arms_share_the_draws_of_their_prompts_whichever_of_them_count():
    """Of 40 prompts one arm shows a tumour in all and another in half of them."""
    every = [Row("left", "left" if k % 4 else "right", str(k)) for k in range(40)]
    half = [Row("left", row.predicted, row.group, counts=k % 2 == 0) for k, row in enumerate(every)]
    first, second = (measure(rows, num_draws=400, seed_parts=(0, "test")) for rows in (every, half))
    assert (first.n, second.n, second.num_groups) == (40, 20, 20)
    assert np.corrcoef(first.share[1:], second.share[1:])[0, 1] > 0.6


def test_the_confusion_matrix_has_every_answer_in_every_row():
    rows = rows_of(("left", "left"), ("left", "none"), ("right", "left"))
    assert count_pairs(rows) == {
        "left": {"left": 1, "none": 1, "right": 0},
        "right": {"left": 1, "none": 0, "right": 0},
    }


def test_pairs_count_where_the_tumour_follows_the_prompt_in_both():
    originals = {
        name: answer(name, report(asked), report(found) if found else NO_TUMOR)
        for name, asked, found in (
            ("follows", "left", "left"),
            ("stays", "left", "left"),
            ("backwards", "right", "left"),
            ("vanishes", "right", "right"),
            ("middle", "midline", "midline"),
        )
    }
    turned = [
        answer("follows", report("right"), report("right")),
        answer("stays", report("right"), report("left")),
        answer("backwards", report("left"), report("right")),
        answer("vanishes", report("left"), NO_TUMOR),
        answer("middle", report("left"), report("left")),
        answer("orphan", report("left"), report("left")),
    ]
    rows = list_flips(originals, turned)
    assert [row.is_right for row in rows] == [True, False, False, False]
    assert [row.counts for row in rows] == [True, True, True, False]  # one has no tumour
    assert rows[0].requested == "left to right"
    assert rows[3].predicted == "right to none"


def test_chance_of_pairs_is_that_of_images_that_heed_no_prompt():
    rows = rows_of(("left to right", "left to right"), ("left to right", "right to left"))
    assert chance_of_flips(rows) == 0.25
    always = rows_of(*[("left to right", "left to left"), ("right to left", "left to left")])
    assert chance_of_flips(always) == 0
