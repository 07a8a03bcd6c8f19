import numpy as np
import pytest
from PIL import Image

from pipeline import registry
from pipeline.errors import DataError, SampleSizeError, UnknownPluginError
from stages.evaluate import stage as evaluate
from stages.evaluate.compare import compare_folders
from tests.stages.evaluate.parts import (
    FULL,
    LABELS,
    draw,
    reverse,
    run,
    stand_ins,
    write_arm,
    write_slices,
)


@pytest.fixture(scope="module")
def networks():
    with stand_ins():
        yield


PRDC = ("precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def full(tmp_path_factory, networks):
    """Every default score, on slices whose orientation is known, and an arm that copies."""
    root = tmp_path_factory.mktemp("full")
    preprocess = write_slices(root / "preprocess", {"train": 30, "test": 24}, oriented=True)
    copied = sorted(preprocess.root.glob("train-*-1*.png"))[:8]
    given = evaluate.EvaluateInputs(
        preprocess,
        {
            "good": write_arm(root / "good", 3),
            "thief": write_arm(root / "thief", 3, seed=5, labels=LABELS, copied=copied),
            "base/tiny_sd15": write_arm(root / "base", 18, seed=4),
        },
    )
    return given, *run(root, given, FULL)


def test_every_default_score_is_there_for_every_row(full):
    _, scores, _ = full
    everywhere = {"kid", "fid", *PRDC, "ms_ssim", "feature_spread"}
    prompted = {"ms_ssim_within_prompt", "feature_spread_within_prompt", "copied_share"}
    rows = {
        "good": everywhere | prompted | {"gap_closed"},
        "thief": everywhere | prompted | {"gap_closed"},
        "base/tiny_sd15": everywhere | prompted,
        "real": everywhere | {"copied_share", "copy_recall"},
        "noise": everywhere,
        "vae/tiny_sd15": everywhere | {"psnr", "copy_recall"},
    }
    for arm, metrics in rows.items():
        assert {m for a, m, group in scores if (a, group) == (arm, "all")} == metrics, arm


def test_orientations_have_scores_at_equal_n(full):
    _, scores, _ = full
    for name in ("axial", "coronal"):
        sizes = {
            s.n_synthetic
            for (_, metric, group), s in scores.items()
            if group == name and metric in ("kid", "precision", "feature_spread")
        }
        assert len(sizes) == 1
        assert sizes.pop() >= 4
        assert ("noise", "kid", name) in scores
        assert ("vae/tiny_sd15", "kid", name) in scores


def test_p_says_which_arm_is_worse_than_real_slices(full):
    _, scores, _ = full
    assert scores["base/tiny_sd15", "kid", "all"].p == pytest.approx(0.05)  # 1 / 20
    assert scores["base/tiny_sd15", "precision", "all"].p is not None
    for arm in ("real", "noise", "vae/tiny_sd15"):
        assert scores[arm, "kid", "all"].p is None


def test_copies_are_counted_named_and_found_when_planted(full):
    _, scores, output = full
    thief, good = (scores[arm, "copied_share", "all"] for arm in ("thief", "good"))
    assert thief.value >= 16 / 48  # eight of each class
    assert thief.value > good.value
    assert (thief.n_real, thief.num_groups, thief.p) == (60, 48, None)
    (beyond,) = (
        row
        for row in output.notes["differences"]["thief - real"]
        if row["metric"] == "copied_share"
    )
    assert 0 < beyond["low"] < beyond["value"]
    notes = output.notes["copies"]
    kinds = {"exact", "shifted", "mirrored", "recoloured", "vae/tiny_sd15"}
    for way in ("recall", "recall_by_pixels", "recall_by_features"):
        assert set(notes[way]) == kinds
        assert notes[way]["exact"] == 1
    assert all(notes["recall"][kind] >= notes["recall_by_pixels"][kind] for kind in kinds)
    best = notes["closest"]["thief"][0]
    assert best["copy"] and best["train"].startswith("train-")
    assert best["correlation"] == pytest.approx(1, abs=1e-3)
    assert any("48 held-out" in w or "24 held-out" in w for w in output.notes["warnings"])


def test_the_cache_and_the_order_change_nothing(tmp_path, full):
    given, scores, output = full
    turned = evaluate.EvaluateInputs(
        reverse(given.preprocess, tmp_path / "preprocess"),
        {name: reverse(a, tmp_path / a.root.name) for name, a in given.generate.items()},
    )
    found, again = run(tmp_path, turned, FULL.model_copy(update={"batch_size": 5}))
    assert list((tmp_path / "features").rglob("*.npz"))
    for key, score in scores.items():
        assert found[key].value == pytest.approx(score.value, rel=1e-4, abs=1e-7), key
        assert found[key].p == score.p, key
    assert again.notes["copies"]["closest"] == output.notes["copies"]["closest"]


@pytest.fixture
def folders(tmp_path, networks):
    rng = np.random.default_rng(0)
    for name, offset in (("reals", 0), ("fakes", 12)):
        (tmp_path / name / "sub").mkdir(parents=True)
        for k in range(30):
            path = tmp_path / name / ("sub" if k % 2 else "") / f"{k}.png"
            Image.fromarray(draw(rng, "glioma", offset)).save(path)
    return tmp_path / "reals", tmp_path / "fakes"


def compare(real, synthetic, **kwargs):
    return compare_folders(real, synthetic, features="blocks", seed=0, **kwargs)


def test_folders_are_compared_between_floor_and_ceiling(folders):
    scores = {(s.arm, s.metric): s for s in compare(*folders)}
    assert {arm for arm, _ in scores} == {"synthetic", "real", "noise"}
    names = {metric for arm, metric in scores if arm == "synthetic"}
    assert names == {"kid", "fid", *PRDC, "ms_ssim", "feature_spread", "copied_share"}
    for metric in ("kid", "fid"):
        values = [scores[arm, metric].value for arm in ("real", "synthetic", "noise")]
        assert values == sorted(values)
    row = scores["synthetic", "kid"]
    assert (row.n_real, row.n_synthetic, row.group, row.experiment) == (30, 30, "all", "compare")
    assert row.low < row.value < row.high
    assert scores["real", "kid"].n_real == 15


def test_comparing_repeats(folders):
    assert compare(*folders) == compare(*folders)


def test_folders_are_checked_before_anything_is_loaded(folders, tmp_path, add_file):
    add_file(registry.FEATURES, "never", "raise AssertionError('a network was loaded')")
    with pytest.raises(DataError, match="absent' is no folder"):
        compare_folders(folders[0], tmp_path / "absent", features="never", seed=0)


def test_three_real_images_are_too_few(folders):
    for path in sorted(folders[0].rglob("*.png"))[3:]:
        path.unlink()
    with pytest.raises(SampleSizeError, match="found 3 images, expected at least 4"):
        compare(*folders)


def test_unknown_features_are_named(folders):
    with pytest.raises(UnknownPluginError, match=r"'unknown'.*blocks.*efficientnet_lite0"):
        compare_folders(*folders, features="unknown", seed=0)
