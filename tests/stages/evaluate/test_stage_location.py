"""Does it do as it was told, through evaluate: arms that obey, arms that do not, and no judge."""

import re

import numpy as np
import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    PluginConfig,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from stages.evaluate import stage as evaluate
from tests.components.judge.parts import SIZE, picture
from tests.fabricate import plugins
from tests.stages.evaluate.parts import BASE, CONFIG, run, stand_ins

PLANES = ("axial", "coronal", "sagittal")
SHIFTED = {"left": "right", "right": "left"}
ONLY_KID = CONFIG.model_copy(update={"metrics": ("kid",), "location": True})


def report(side, plane, region="frontal lobe", shape="round"):
    if side is None:
        return TumorReport(tumor=False, orientation=plane)
    shown = "unknown" if plane == "sagittal" else side
    return TumorReport(
        tumor=True,
        location=region,
        side=shown,
        size="large",
        shape=shape,
        intensity="hyperintense",
        orientation=plane,
    )


def save(path, side, plane):
    image, blob = picture(side, plane)
    Image.fromarray(image).convert("RGB").save(path)
    return blob


def cases(count):
    """Yield name, label, side and plane: as many with a tumour as without, both sides alike."""
    for k in range(count):
        for label, side in (("glioma", ("left", "right")[k % 2]), ("notumor", None)):
            yield f"{label}-{k}", label, side, PLANES[k % 3]


def write_real(root, with_truth=True):
    root.mkdir()
    records = []
    for split, count in {"train": 12, "test": 12}.items():
        for name, label, side, plane in cases(count):
            blob = save(root / f"{split}-{name}.png", side, plane)
            Image.fromarray(blob.astype(np.uint8) * 2).save(root / f"{split}-{name}.mask.png")
            records.append(
                SliceRecord(
                    slice_id=f"{split}-{name}",
                    subject_id=f"{split}-{name}",
                    group_id=f"{split}-{name}",
                    source="phantom",
                    split=split,
                    label=label,
                    orientation=plane,
                    image_path=f"{split}-{name}.png",
                    mask_path=f"{split}-{name}.mask.png" if with_truth else None,
                    original=name,
                    original_width_px=SIZE,
                    original_height_px=SIZE,
                    truth=report(side, plane) if with_truth else None,
                )
            )
    write_records(root / "records.jsonl", records)
    return Artifact(root, "p", SliceRecord, {})


def write_arm(root, draw, pairs=False, stated=True, guidance=None, **told):
    """Write an arm; `draw` turns the side that is asked for into the one that is drawn."""
    root.mkdir()
    records = []

    def add(name, label, side, plane, original=None):
        save(root / f"{name}.png", draw(side), plane)
        records.append(
            SyntheticRecord(
                image_id=name,
                image_path=f"{name}.png",
                prompt=label,
                requested=report(side, plane, **told) if stated else TumorReport(),
                label=label,
                seed=0,
                adapter_digest=None,
                counterfactual_of=original,
            )
        )

    for name, label, side, plane in cases(18):
        add(name, label, side, plane)
        if pairs and side is not None and plane != "sagittal":
            add(f"{name}-turned", label, SHIFTED[side], plane, original=name)
    write_records(root / "records.jsonl", records)
    config = {"config": {"base_model": BASE.model_dump(), "guidance": guidance}}
    return Artifact(root, root.name, SyntheticRecord, config)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = tmp_path_factory.mktemp("told")
    inputs = evaluate.EvaluateInputs(
        write_real(root / "preprocess"),
        {
            "obeys": write_arm(
                root / "obeys", lambda side: side, pairs=True, guidance={"name": "location"}
            ),
            "deaf": write_arm(root / "deaf", lambda side: side and "left", pairs=True),
            "empty": write_arm(root / "empty", lambda side: None, region="thalamus", shape="oval"),
            "base/tiny_sd15": write_arm(root / "base", lambda side: side and "left", pairs=True),
        },
    )
    config = ONLY_KID.model_copy(update={"judge": PluginConfig(name="bright")})
    with stand_ins(), plugins.added(registry.JUDGES, "bright", root / "parts"):
        return run(root, inputs, config)


def test_an_arm_that_obeys_is_right_in_every_field(scored):
    scores, _ = scored
    for field in ("presence", "sensitivity", "specificity", "side", "region", "size"):
        found = scores["obeys", f"location_{field}", "all"]
        assert found.value == found.high == 1, field
        assert 0.7 < found.low < 1
        assert found.higher_is_better
        assert found.features is None
    assert scores["obeys", "location_orientation", "all"].value == 1


def test_an_arm_steered_by_a_judge_is_said_to_be_flattered(scored):
    _, output = scored
    flattered = [line for line in output.notes["warnings"] if "location scores flatter it" in line]
    assert [line.split(":")[0] for line in flattered] == ["obeys"]


def test_n_is_that_of_the_prompts_that_ask_and_of_the_slices_behind_the_judge(scored):
    scores, _ = scored
    side, presence = (scores["obeys", f"location_{name}", "all"] for name in ("side", "presence"))
    assert (side.n_synthetic, side.n_real) == (12, 16)  # sagittal ones have no side
    assert (presence.n_synthetic, presence.n_real) == (36, 48)
    assert (presence.num_groups, presence.num_negative_groups) == (36, 18)
    assert (side.num_groups, side.num_negative_groups) == (12, None)
    assert scores["obeys", "location_side", "glioma"].n_synthetic == 12
    assert scores["obeys", "location_side", "coronal"].n_synthetic == 6
    assert ("obeys", "location_side", "notumor") not in scores


def test_a_deaf_arm_is_at_chance_on_the_side_and_right_elsewhere(scored):
    scores, output = scored
    side = scores["deaf", "location_side", "all"]
    assert side.value == 0.5
    assert side.low < 0.5 < side.high
    assert scores["deaf", "location_presence", "all"].value == 1
    facts = output.notes["location"]["fields"]["deaf"]["side"]
    assert (facts["chance"], facts["majority"], facts["n"]) == (0.5, 0.5, 12)
    confusion = output.notes["location"]["confusion"]["deaf"]["side"]
    assert confusion == {"left": {"left": 6, "right": 0}, "right": {"left": 6, "right": 0}}


def test_an_arm_without_tumours_is_wrong_in_every_field_of_a_tumour_but_has_no_side(scored):
    scores, output = scored
    for field in ("sensitivity", "region", "size", "shape", "intensity"):
        found = scores["empty", f"location_{field}", "all"]
        assert (found.value, found.low) == (0, 0), field
        assert found.high > 0.1, field  # none of so many prompts is not certainty
    assert ("empty", "location_side", "all") not in scores
    assert scores["empty", "location_specificity", "all"].value == 1
    assert scores["empty", "location_presence", "all"].value == 0.5
    assert "side" not in output.notes["location"]["confusion"]["empty"]
    for word, field in (("thalamus", "region"), ("oval", "shape")):
        warned = rf"never saw {word}, so an image asked for it is wrong in location_{field}"
        assert any(re.search(warned, line) for line in output.notes["warnings"]), word


def test_the_judge_is_judged_on_real_slices_and_through_the_vae(scored):
    scores, output = scored
    for arm, n in (("real", 24), ("vae/tiny_sd15", 12)):  # it was trained on none of the run's own
        side = scores[arm, "location_side", "all"]
        assert (side.value, side.n_real, side.n_synthetic) == (1, n * 2 / 3, n * 2 / 3), arm
        assert scores[arm, "location_sensitivity", "all"].n_real == n
    for field in ("shape", "intensity"):
        assert scores["real", f"location_{field}", "all"].value == 1, field
    assert scores["real", "location_dice", "all"].value == 1
    blurred = scores["vae/tiny_sd15", "location_dice", "all"].value
    assert 0.5 < blurred < 1
    assert output.notes["location"]["judge"]["num_real"] == 48


def test_presence_is_corrected_by_what_the_judge_makes_of_slices_through_the_vae(scored):
    scores, _ = scored
    for arm, share in (("obeys", 1), ("empty", 0)):
        raw, corrected = (
            scores[arm, f"location_sensitivity{end}", "all"] for end in ("", "_corrected")
        )
        assert corrected.value == raw.value == share
        assert (corrected.n_synthetic, corrected.num_groups) == (18, 18)
        assert 0.15 < corrected.high - corrected.low < 0.5
    assert ("real", "location_sensitivity_corrected", "all") not in scores


def test_pairs_say_whether_the_tumour_moves(scored):
    scores, output = scored
    obeys, deaf = (scores[arm, "location_side_flip", "all"] for arm in ("obeys", "deaf"))
    assert (obeys.value, obeys.n_synthetic, obeys.n_real) == (1, 12, 16)
    assert deaf.value == 0
    assert ("empty", "location_side_flip", "all") not in scores
    assert output.notes["location"]["flips"]["obeys"] == {"n": 12, "chance": 0.25}


def test_crops_around_the_tumour_tell_who_draws_one(scored):
    scores, output = scored
    crops = {arm: score for (arm, metric, _), score in scores.items() if metric == "lesion_kid"}
    arms = {"obeys", "deaf", "empty", "base/tiny_sd15"}
    assert crops.keys() == arms | {"real", "control/notumor", "vae/tiny_sd15"}
    near = max(crops[arm].value for arm in ("obeys", "deaf", "real"))
    far = min(crops[arm].low for arm in ("empty", "control/notumor"))
    assert near < far
    assert all((score.n_real, score.n_synthetic) == (12, 12) for score in crops.values())
    assert "cut where that judge is surest" in output.notes["methods"]
    names = {row["metric"] for row in output.notes["differences"]["obeys - empty"]}
    assert "lesion_kid" in names


def test_counterfactual_images_are_in_no_other_score(scored):
    scores, _ = scored
    for arm in ("obeys", "deaf"):
        assert scores[arm, "kid", "all"].n_synthetic == 24  # as many as real test slices
        assert scores[arm, "location_presence", "all"].n_synthetic == 36


def test_arms_are_compared_with_chance_and_with_each_other(scored):
    _, output = scored

    def row(pair):
        rows = output.notes["differences"][pair]
        (found,) = [item for item in rows if item["metric"] == "location_side"]
        return found

    assert row("obeys - base/tiny_sd15") == row("obeys - deaf")
    assert row("obeys - deaf")["num_groups"] == 12
    assert row("deaf - base/tiny_sd15")["value"] == 0
    assert row("deaf - base/tiny_sd15")["low"] < 0 < row("deaf - base/tiny_sd15")["high"]
    assert row("obeys - deaf")["value"] == 0.5
    assert row("obeys - deaf")["low"] > 0
    assert row("obeys - chance")["low"] > 0
    assert row("deaf - chance")["value"] == 0
    assert row("deaf - chance")["features"] is None


def test_draws_are_kept_and_the_methods_name_the_judge(scored):
    _, output = scored
    with np.load(output.root / "bootstrap.npz", allow_pickle=False) as draws:
        assert draws["location_side/pixels/all/deaf"].shape == (40,)
    assert "read by a judge (bright)" in output.notes["methods"]
    assert "48 real slices that did not train it" in output.notes["methods"]


@pytest.mark.parametrize(
    ("with_truth", "stated", "words"),
    [
        (False, True, "the test slices of this source have no masks"),
        (True, False, "no prompt states a field"),
        (True, True, "the judge is missing"),
    ],
)
def test_without_a_judge_one_line_says_why(tmp_path, with_truth, stated, words):
    settings = {"model": str(tmp_path / "gone")}
    judge = PluginConfig(name="embedded", settings=settings)
    config = ONLY_KID.model_copy(update={"judge": judge, "num_bootstrap": 0, "base_models": {}})
    inputs = evaluate.EvaluateInputs(
        write_real(tmp_path / "preprocess", with_truth),
        {"arm": write_arm(tmp_path / "arm", lambda side: side, stated=stated)},
    )
    with stand_ins():
        scores, output = run(tmp_path, inputs, config)
    assert words in output.notes["location"]["missing"]
    assert not any(metric.startswith("location_") for _, metric, _ in scores)
    assert "judge" not in output.notes["methods"]
    warned = [line for line in output.notes["warnings"] if line.startswith("lesion crops")]
    assert len(warned) == 1 and words in warned[0]


def test_a_run_may_do_without(tmp_path):
    config = ONLY_KID.model_copy(update={"location": False, "base_models": {}, "num_bootstrap": 0})
    inputs = evaluate.EvaluateInputs(
        write_real(tmp_path / "preprocess"), {"arm": write_arm(tmp_path / "arm", lambda side: side)}
    )
    with stand_ins():
        _, output = run(tmp_path, inputs, config)
    assert "location" not in output.notes
    assert any("evaluate.location is off" in line for line in output.notes["warnings"])


def test_midline_tumours_are_no_side(tmp_path):
    """A generator that draws all midline tumours rightly, and the others on the left always."""

    def write(name, midline):
        root = tmp_path / name
        root.mkdir()
        records = []
        for k in range(48):
            side = "midline" if k % 2 else ("left", "right")[k // 2 % 2]
            drawn = "left" if side != "midline" else midline
            plane = PLANES[k % 2]
            save(root / f"{k}.png", drawn, plane)
            records.append(
                SyntheticRecord(
                    image_id=str(k),
                    image_path=f"{k}.png",
                    prompt="",
                    requested=report(side, plane),
                    label="pituitary" if k % 2 else "glioma",
                    seed=k,
                    adapter_digest=None,
                )
            )
        write_records(root / "records.jsonl", records)
        return Artifact(root, name, SyntheticRecord, {"config": {"base_model": BASE.model_dump()}})

    arms = {"arm": write("arm", "midline"), "base/tiny_sd15": write("base", None)}
    settings = {"judge": PluginConfig(name="bright"), "base_models": {}, "metrics": ()}
    config = ONLY_KID.model_copy(update=settings)
    inputs = evaluate.EvaluateInputs(write_real(tmp_path / "preprocess"), arms)
    with stand_ins(), plugins.added(registry.JUDGES, "bright", tmp_path / "parts"):
        scores, output = run(tmp_path, inputs, config)
    sides = {arm: scores[arm, "location_side", "all"] for arm in arms}
    assert {(side.value, side.n_synthetic) for side in sides.values()} == {(0.5, 24)}
    ((gain),) = [
        row
        for row in output.notes["differences"]["arm - base/tiny_sd15"]
        if row["metric"] == "location_side"
    ]
    assert gain["value"] == 0
    assert ("arm", "location_side", "pituitary") not in scores
    assert scores["arm", "location_presence", "all"].value == 1
    assert scores["base/tiny_sd15", "location_presence", "all"].value == 0.5
