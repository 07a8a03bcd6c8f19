import dataclasses
import shutil

import numpy as np
import pytest

from pipeline.contracts import PluginConfig, write_records
from pipeline.errors import MissingWeightsError, SampleSizeError, SplitLeakError
from stages.evaluate import stage as evaluate
from tests.stages.evaluate.parts import (
    CONFIG,
    LABELS,
    reverse,
    run,
    stand_ins,
    write_arm,
    write_slices,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return evaluate.EvaluateInputs(
        preprocess=write_slices(root / "preprocess", {"train": 30, "test": 24, "val": 2}),
        generate={
            "good": write_arm(root / "good", 3),
            "bad": write_arm(root / "bad", 10, seed=3),
            "base/tiny_sd15": write_arm(root / "base", 18, seed=4),
        },
    )


GONE = PluginConfig(name="vgg16", settings={"weights": "gone.pth"})


@pytest.fixture(scope="module")
def networks():
    with stand_ins():
        yield


@pytest.fixture(scope="module")
def scored(tmp_path_factory, inputs, networks):
    return run(tmp_path_factory.mktemp("scored"), inputs)


def test_every_row_is_there_overall_and_per_class(scored):
    scores, _ = scored
    scores = {key: score for key, score in scores.items() if not key[0].startswith("control/")}
    rows = {(arm, metric) for arm, metric, group in scores if group == "all"}
    arms = ("good", "bad", "base/tiny_sd15", "real", "noise", "vae/tiny_sd15")
    assert rows == {
        *((arm, metric) for arm in arms for metric in ("kid", "fid")),
        ("good", "gap_closed"),
        ("bad", "gap_closed"),
        ("vae/tiny_sd15", "psnr"),
    }
    for label in LABELS:
        assert {(a, m) for a, m, group in scores if group == label} == rows


def test_n_is_equal_and_stands_in_every_row(scored):
    scores, output = scored
    for (arm, _, group), score in scores.items():
        assert score.n_real == (48 if group == "all" else 24)
        assert score.n_synthetic == score.n_real or arm.startswith("control/")
        assert score.stage == "evaluate"
        assert score.experiment == "test"
    assert output.counts["n_glioma"] == 24


@pytest.mark.parametrize("metric", ["kid", "fid"])
def test_scores_lie_between_floor_and_ceiling_in_the_right_order(scored, metric):
    scores, _ = scored
    order = ["real", "good", "bad", "base/tiny_sd15", "noise"]
    values = [scores[arm, metric, "all"].value for arm in order]
    assert values == sorted(values)
    assert not any(scores[arm, metric, "all"].higher_is_better for arm in order)


def test_intervals_hold_their_values(scored):
    scores, _ = scored
    for key, score in scores.items():
        assert score.low <= score.value <= score.high, key


def test_gap_closed_is_that_of_the_rows(scored):
    scores, _ = scored
    base, arm, vae = (
        scores[name, "kid", "all"].value for name in ("base/tiny_sd15", "good", "vae/tiny_sd15")
    )
    found = scores["good", "gap_closed", "all"]
    assert found.value == pytest.approx((base - arm) / (base - vae))
    assert found.value > scores["bad", "gap_closed", "all"].value
    assert found.higher_is_better


def test_psnr_is_a_mean_over_slices_in_db(scored):
    psnr = scored[0]["vae/tiny_sd15", "psnr", "all"]
    assert 20 < psnr.value < 40
    assert psnr.features is None
    assert psnr.higher_is_better


def test_differences_are_paired_and_signed(scored):
    scores, output = scored
    rows = output.notes["differences"]["good - bad"]
    assert [row["metric"] for row in rows] == ["kid", "fid"]
    for row in rows:
        a, b = (scores[arm, row["metric"], "all"].value for arm in ("good", "bad"))
        assert row["value"] == pytest.approx(a - b)
        assert row["high"] < 0
        assert row["features"] == "blocks"
    assert set(output.notes["differences"]) == {
        "good - bad",
        "good - base/tiny_sd15",
        "bad - base/tiny_sd15",
    }


def test_arms_that_were_asked_the_same_differ_by_what_they_made_alone(tmp_path, inputs, networks):
    twin = write_arm(tmp_path / "twin", 3)  # the images of "good" under another name
    generate = {"good": inputs.generate["good"], "twin": twin}
    config = CONFIG.model_copy(update={"max_images": 20})
    _, output = run(tmp_path, evaluate.EvaluateInputs(inputs.preprocess, generate), config)
    assert "good - twin" not in output.notes["differences"]  # no draw of prompts tells them apart
    with np.load(output.root / "bootstrap.npz", allow_pickle=False) as draws:
        for metric in ("kid", "fid"):
            good, twin = (draws[f"{metric}/blocks/all/{arm}"] for arm in ("good", "twin"))
            assert good == pytest.approx(twin, abs=1e-12)


def test_a_class_of_one_subject_has_no_distance_and_is_named(tmp_path, inputs, networks):
    records = list(inputs.preprocess.records())
    lone = [
        r.model_copy(update={"group_id": f"{r.split}-{r.label}"}) if r.label == "glioma" else r
        for r in records
    ]
    root = tmp_path / "lone"
    shutil.copytree(inputs.preprocess.root, root)
    write_records(root / "records.jsonl", lone)
    preprocess = dataclasses.replace(inputs.preprocess, root=root)
    scores, output = run(tmp_path, evaluate.EvaluateInputs(preprocess, inputs.generate))
    assert ("good", "kid", "notumor") in scores
    assert ("good", "kid", "glioma") not in scores
    assert any(
        line.startswith("pairs between groups need images of at least 2")
        and "glioma of good" in line
        for line in output.notes["warnings"]
    )


def test_draws_are_kept_for_every_row(scored):
    scores, output = scored
    with np.load(output.root / "bootstrap.npz", allow_pickle=False) as draws:
        assert draws["kid/blocks/all/good"].shape == (40,)
        assert len(draws.files) == len(scores)
    assert output.notes["num_draws"]["kid"] == 40


def test_the_methods_sentence_names_what_was_done(scored):
    sentence = scored[1].notes["methods"]
    assert "notumor 24, glioma 24" in sentence
    assert "Lanczos" in sentence


def test_same_inputs_give_the_same_bytes(tmp_path, inputs, scored):
    _, again = run(tmp_path, inputs)
    for name in ("records.jsonl", "bootstrap.npz"):
        assert (again.root / name).read_bytes() == (scored[1].root / name).read_bytes()


def test_order_of_records_and_batch_size_do_not_matter(tmp_path, inputs, scored):
    turned = evaluate.EvaluateInputs(
        reverse(inputs.preprocess, tmp_path / "preprocess"),
        {
            name: reverse(artifact, tmp_path / artifact.root.name)
            for name, artifact in inputs.generate.items()
        },
    )
    found, _ = run(tmp_path, turned, config=CONFIG.model_copy(update={"batch_size": 5}))
    for key, score in scored[0].items():
        assert found[key].value == pytest.approx(score.value, rel=1e-4, abs=1e-7), key
        assert found[key].low == pytest.approx(score.low, rel=1e-4, abs=1e-6), key


def test_max_images_is_a_cap(tmp_path, inputs, networks):
    config = CONFIG.model_copy(update={"max_images": 20})
    scores, _ = run(tmp_path, inputs, config=config)
    assert scores["good", "kid", "all"].n_synthetic == 20
    assert scores["good", "kid", "glioma"].n_real == 10


def test_without_bootstrap_there_are_values_and_no_intervals(tmp_path, inputs, networks):
    scores, output = run(tmp_path, inputs, CONFIG.model_copy(update={"num_bootstrap": 0}))
    assert scores["good", "kid", "all"].low is None
    assert output.notes["differences"] == {}


def test_rank_deficiency_is_said(tmp_path, inputs, networks):
    config = CONFIG.model_copy(update={"max_images": 12})
    _, output = run(tmp_path, inputs, config=config)
    assert any("fid at n = 12 on 17 features" in line for line in output.notes["warnings"])


def test_an_arm_of_another_base_model_has_no_gap(tmp_path, inputs, networks):
    other = write_arm(tmp_path / "other", 5, base=PluginConfig(name="sdxl"))
    inputs = evaluate.EvaluateInputs(inputs.preprocess, {**inputs.generate, "other": other})
    scores, _ = run(tmp_path, inputs)
    assert ("other", "gap_closed", "all") not in scores
    assert ("other", "kid", "all") in scores


def test_a_gap_that_does_not_exist_is_said(tmp_path, inputs, networks):
    near = write_arm(tmp_path / "near", 0, seed=1)
    generate = {"bad": inputs.generate["bad"], "base/tiny_sd15": near}
    scores, output = run(tmp_path, evaluate.EvaluateInputs(inputs.preprocess, generate))
    assert ("bad", "gap_closed", "all") not in scores
    assert any("there is no gap" in line for line in output.notes["warnings"])


def test_a_leak_is_refused(tmp_path, networks):
    leaky = write_slices(tmp_path / "leaky", {"train": 3, "test": 3}, leak=True)
    with pytest.raises(SplitLeakError, match="'g0' is in both train"):
        run(tmp_path, evaluate.EvaluateInputs(leaky, {}))


def test_too_few_images_are_refused(tmp_path, inputs, networks):
    lone = write_arm(tmp_path / "lone", 0, count=1, labels=("notumor",))
    with pytest.raises(SampleSizeError, match=r"found 1 \(images: test 48, train 60, lone 1\)"):
        run(tmp_path, evaluate.EvaluateInputs(inputs.preprocess, {"lone": lone}))


def test_a_class_with_one_image_has_no_scores_and_is_named(tmp_path, inputs, networks):
    thin = write_arm(tmp_path / "thin", 0, count=1)
    scores, output = run(tmp_path, evaluate.EvaluateInputs(inputs.preprocess, {"thin": thin}))
    assert ("thin", "kid", "all") in scores
    assert ("thin", "kid", "glioma") not in scores
    assert any(line.startswith("glioma: 1 images") for line in output.notes["warnings"])


def test_a_missing_network_is_named_and_the_run_goes_on(tmp_path, inputs, networks):
    plugins = (GONE, PluginConfig(name="blocks"))
    config = CONFIG.model_copy(update={"features": plugins, "metrics": ("kid", "vgg_fd")})
    scores, output = run(tmp_path, inputs, config)
    assert scores["good", "kid", "all"].features == "blocks"
    warnings = output.notes["warnings"]
    assert any("vgg16: no weights at" in line and "gone.pth'" in line for line in warnings)
    assert "vgg_fd needs the features vgg16, which are not here" in warnings


def test_without_any_network_nothing_is_scored(tmp_path, inputs, networks):
    config = CONFIG.model_copy(update={"features": (GONE,)})
    with pytest.raises(MissingWeightsError, match="extractors/vgg16"):
        run(tmp_path, inputs, config)


def test_a_metric_that_needs_more_images_is_refused_by_name(tmp_path, inputs, networks):
    config = CONFIG.model_copy(update={"max_images": 12, "metrics": ("kid", "prdc")})
    scores, output = run(tmp_path, inputs, config)
    assert ("good", "precision", "all") in scores
    assert ("good", "precision", "glioma") not in scores
    assert any(
        line.startswith("prdc needs at least 7 images") and "glioma (n = 6)" in line
        for line in output.notes["warnings"]
    )


def test_slices_of_unknown_orientation_have_no_scores_by_it(scored):
    scores, output = scored
    assert {group for _, _, group in scores} == {"all", *LABELS}
    assert any("no orientation is named" in line for line in output.notes["warnings"])


def test_settings_can_be_chosen_on_validation_slices(tmp_path, inputs, networks):
    preprocess = write_slices(tmp_path / "slices", {"train": 30, "val": 12, "test": 24})
    inputs = evaluate.EvaluateInputs(preprocess, inputs.generate)
    for path in preprocess.root.glob("test-*.png"):
        path.unlink()  # nobody looks at them
    scores, output = run(tmp_path, inputs, CONFIG.model_copy(update={"split": "val"}))
    assert scores["good", "kid", "all"].n_real == 24
    assert "as many real val slices" in output.notes["methods"]
    assert any("scored against val slices" in line for line in output.notes["warnings"])


def test_the_test_split_is_the_default_and_says_nothing(scored):
    assert "as many real test slices" in scored[1].notes["methods"]
    assert not any("scored against" in line for line in scored[1].notes["warnings"])
