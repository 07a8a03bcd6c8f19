"""Explanations and re-captioning on the page: numbers beside chance, maps over slices."""

import numpy as np
import pytest
from PIL import Image

from pipeline.contracts import Artifact, ScoreRecord, SliceRecord, write_records
from stages.report.numbers import Legend
from stages.report.pictures import CELL_PX, GAP_PX, OUTLINE
from stages.report.sections import explanations, recaption
from stages.report.sections.classifier import lay_out_classifiers

SIZE = 64


def score(metric, value, arm="real", group="all", features="occlusion", **changes):
    return ScoreRecord(**{
        "experiment": "e", "arm": arm, "stage": "classify", "metric": metric,
        "features": features, "group": group, "value": value, "low": value - 0.01,
        "high": value + 0.01, "n_real": 8, "n_synthetic": 0, "higher_is_better": True, **changes,
    })  # fmt: skip


SCORES = [
    score("lesion_share", 0.25, p=0.004),
    score("lesion_share_by_chance", 0.06),
    score("deletion_area", 0.3),
    score("deletion_area_by_chance", 0.6),
    score("deletion_area", 0.4, arm="good", features="attention"),
    score("deletion_area_by_chance", 0.5, arm="good", features="attention"),
    score("accuracy", 0.9, features=None),
]


def facts(arm, drawn, wrong):
    return {
        "maps": f"explanations/{arm}.npz",
        "slices": dict.fromkeys([*drawn, *wrong], 0.75),
        "drawn": drawn,
        "wrong": wrong,
        "num_wrong": len(wrong),
        "scores": {"occlusion": {"area_share": 0.05, "curve": [1.0, 0.0]}},
        "skipped": {"attention": "Net has none"} if arm == "real" else {},
    }


@pytest.fixture
def run(tmp_path):
    """Two slices, one with a mask, and the maps of two arms."""
    root = tmp_path / "p"
    root.mkdir()
    records = []
    for k in range(2):
        Image.new("RGB", (SIZE, SIZE), (90, 90, 90)).save(root / f"s{k}.png")
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[10:20, 10:20] = 2
        Image.fromarray(mask).save(root / f"m{k}.png")
        records.append(
            SliceRecord(
                slice_id=f"s{k}", subject_id=None, group_id=f"s{k}", source="x", split="test",
                label="glioma", image_path=f"s{k}.png", mask_path=None if k else "m0.png",
                original="s", original_width_px=1, original_height_px=1,
            )
        )  # fmt: skip
    write_records(root / "records.jsonl", records)
    arms = {"real": facts("real", ["s0"], ["s1"]), "good": facts("good", ["s0"], [])}
    maps = np.zeros((2, SIZE, SIZE), np.float16)
    maps[:, 40:50, 40:50] = 1
    (tmp_path / "c" / "explanations").mkdir(parents=True)
    for arm in arms:
        np.savez(tmp_path / "c" / "explanations" / f"{arm}.npz", occlusion=maps)
    notes = {"explanations": {"num_steps": 20, "arms": arms}}
    classify = Artifact(tmp_path / "c", "c", ScoreRecord, {})
    return notes, classify, Artifact(root, "p", SliceRecord, {})


def test_each_method_stands_beside_its_chance(run):
    table = explanations.table_explanations(SCORES, run[0])
    assert [row[:2] for row in table.rows] == [("real", "occlusion"), ("good", "attention")]
    assert table.rows[0][2:] == (
        "25.0 (24.0 to 26.0)", "6.0 (5.0 to 7.0)", "0.004", "5.0",
        "0.300 (0.290 to 0.310)", "0.600 (0.590 to 0.610)", "8",
    )  # fmt: skip
    assert table.rows[1][2:6] == ("–", "–", "–", "–")
    assert explanations.table_explanations(SCORES[-1:], {}) is None


def test_a_classifier_at_chance_is_not_explained():
    rows = [score("auroc", 0.505, features=None), score("auroc", 0.8, arm="good", features=None)]
    rows.append(score("auroc", 0.3, arm="bad", group="glioma", features=None))
    assert explanations.find_guessers(rows) == ["real"]


def test_words_name_what_could_not_be_explained(run):
    words = explanations.describe_explanations(run[0])
    assert "Not possible: attention of real (Net has none)." in words
    assert explanations.describe_explanations({}) == ""


def test_a_picture_for_drawn_and_one_for_wrong_slices(run):
    pictures = explanations.draw_explanations(*run)
    assert [(it.arm, it.what) for it in pictures] == [
        ("real", "drawn"), ("real", "wrong"), ("good", "drawn"),
    ]  # fmt: skip
    assert "glioma (0.75)" in pictures[0].caption
    pixels = np.asarray(pictures[0].image)
    step, pad = CELL_PX + GAP_PX, (CELL_PX - SIZE) // 2
    assert pixels.shape == (2 * step - GAP_PX, CELL_PX, 3)
    for top in (pad, step + pad):
        assert tuple(pixels[top + 10, pad + 15]) == OUTLINE
        assert tuple(pixels[top + 15, pad + 15]) == (90, 90, 90)
    assert tuple(pixels[pad + 45, pad + 45]) == (90, 90, 90)  # the slice itself
    painted = pixels[step + pad + 45, pad + 45].astype(int)
    assert painted.max() - painted.min() > 30  # the map, in colour
    without = np.asarray(pictures[1].image)
    assert tuple(without[pad + 10, pad + 15]) == (90, 90, 90)  # no mask, no outline


def test_nothing_is_drawn_without_explanations(run):
    assert explanations.draw_explanations({}, run[1], run[2]) == []


def test_other_sources_have_their_own_table_and_words():
    rows = [score("accuracy", 0.8, group="cross_test:clinic", features=None, n_real=1234)]
    use = {"num_slices": 1234, "sha256": "ab", "looks": {"real, seed 0": {"looks": 1}}}
    notes = {"cross_test": {"clinic": {"source": "image_folder", "test_use": {"binary": use}}}}
    section = lay_out_classifiers(rows, {"notes": notes, "config": {}}, Legend({}))
    tables = dict(section.scores)
    own = tables["Tested on another source: clinic"]
    assert own.rows[0][:3] == ("real", "80.0", "79.0 to 81.0")
    assert "test slices of clinic (source image_folder, n = 1,234), 1 states" in section.words
    assert section.details == ()


def test_recaptions_stand_beside_the_captioner_s_own_error():
    own = {"stage": "evaluate", "features": "ovis2"}
    rows = [
        score("recaption_side", 0.9, **own),
        score("recaption_side", 0.6, arm="sdxl", n_real=0, n_synthetic=40, **own),
    ]
    fields = {arm: {"side": {"chance": 0.5}} for arm in ("real", "sdxl")}
    notes = {"recaption": {"vlm": "ovis2", "fields": fields, "error_unknown": ["size"]}}
    ((title, table),), words = recaption.table_recaption(rows, notes, Legend({}, "slices"))
    assert "ovis2" in title
    assert table.rows[0] == (
        "slices: the captioner itself",
        "90.0 (89.0 to 91.0; chance 50.0; n = 8, – groups)",
    )
    assert table.rows[1] == ("sdxl", "60.0 (59.0 to 61.0; chance 50.0; n = 40, – groups)")
    assert "Of size the captioner's own error is not known" in words
    assert recaption.table_recaption(rows, {}, Legend({})) == ((), "")
