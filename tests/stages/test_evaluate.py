import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    Context,
    PluginConfig,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import DataError, SampleSizeError, SplitLeakError, UnknownPluginError
from pipeline.settings import EvaluateConfig
from stages import evaluate
from stages.components import scoring

LABELS = ("notumor", "glioma")
BASE = PluginConfig(name="tiny_sd15")
LOAD_EXTRACTOR = scoring.load_extractor
SIZE = 16


class Blocks:
    """A network's stand-in: brightness of 4 x 4 blocks and its spread."""

    name, num_features, input_size = "blocks", 17, SIZE

    def __call__(self, images):
        gray = images.astype(np.float32).mean(axis=3) / 64
        means = gray.reshape(len(images), 4, 4, 4, 4).mean(axis=(2, 4)).reshape(len(images), 16)
        return np.concatenate([means, gray.std(axis=(1, 2))[:, None]], axis=1)


class Blur(nn.Module):
    """A VAE's stand-in that loses detail."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, pixels):
        return SimpleNamespace(
            latent_dist=SimpleNamespace(mode=lambda: nn.functional.avg_pool2d(pixels, 2))
        )

    def decode(self, latents):
        return SimpleNamespace(sample=nn.functional.interpolate(latents, scale_factor=2))


def draw(rng, label, offset=0):
    """A smooth bright head, brighter with a tumour; `offset` is a fault of the generator."""
    image = rng.normal(100 + offset, 12, (SIZE, SIZE))
    image[4:12, 4:12] += 20 * rng.random()
    if label == "glioma":
        image[6:9, 6:9] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def write_slices(root, counts, leak=False):
    root.mkdir()
    records = []
    rng = np.random.default_rng(1)
    for split, count in counts.items():
        for label in LABELS:
            for k in range(count):
                name = f"{split}-{label}-{k}"
                Image.fromarray(draw(rng, label)).convert("RGB").save(root / f"{name}.png")
                group = f"{split}-{k // 2}" if not leak else f"g{k}"
                records.append(
                    SliceRecord(
                        slice_id=name,
                        subject_id=group,
                        group_id=group,
                        source="test",
                        split=split,
                        label=label,
                        image_path=f"{name}.png",
                        original=name,
                        original_width_px=SIZE,
                        original_height_px=SIZE,
                    )
                )
    write_records(root / "records.jsonl", records)
    return Artifact(root, "p", SliceRecord, {})


def write_arm(root, offset, count=24, labels=LABELS, seed=2, base=BASE):
    root.mkdir()
    rng = np.random.default_rng(seed)
    records = []
    for label in labels:
        for k in range(count):
            name = f"{label}-{k}"
            Image.fromarray(draw(rng, label, offset)).convert("RGB").save(root / f"{name}.png")
            records.append(
                SyntheticRecord(
                    image_id=name,
                    image_path=f"{name}.png",
                    prompt="",
                    requested=TumorReport(),
                    label=label,
                    seed=0,
                    adapter_digest=None,
                )
            )
    write_records(root / "records.jsonl", records)
    return Artifact(root, root.name, SyntheticRecord, {"config": {"base_model": base.model_dump()}})


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


@pytest.fixture(scope="module")
def networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "load_extractor", lambda plugin, device: Blocks())
        patch.setattr(evaluate, "load_vae", lambda plugin, device: Blur())
        yield


CONFIG = EvaluateConfig(num_bootstrap=40, base_models={"tiny_sd15": BASE})


def run(tmp_path, inputs, config=CONFIG, seed=0, name="out"):
    root = tmp_path / name
    root.mkdir()
    output = ArtifactWriter(root, ScoreRecord)
    context = Context("test", seed, "cpu", "float32", 1, tmp_path, lambda line: None)
    evaluate.run(config, inputs, output, context)
    scores = list(Artifact(root, "e", ScoreRecord, {}).records())
    return {(s.arm, s.metric, s.group): s for s in scores}, output


@pytest.fixture(scope="module")
def scored(tmp_path_factory, inputs, networks):
    return run(tmp_path_factory.mktemp("scored"), inputs)


def test_every_row_is_there_overall_and_per_class(scored):
    scores, _ = scored
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
    for (_, _, group), score in scores.items():
        assert score.n_real == score.n_synthetic == (48 if group == "all" else 24)
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


def reverse(artifact, root):
    """Copy an artifact with its records in the opposite order."""
    shutil.copytree(artifact.root, root)
    path = root / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    return dataclasses.replace(artifact, root=root)


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
    return evaluate.compare_folders(real, synthetic, features="blocks", seed=0, **kwargs)


def test_folders_are_compared_between_floor_and_ceiling(folders):
    scores = {(s.arm, s.metric): s for s in compare(*folders)}
    assert len(scores) == 6
    for metric in ("kid", "fid"):
        values = [scores[arm, metric].value for arm in ("real", "synthetic", "noise")]
        assert values == sorted(values)
    row = scores["synthetic", "kid"]
    assert (row.n_real, row.n_synthetic, row.group, row.experiment) == (30, 30, "all", "compare")
    assert row.low < row.value < row.high
    assert scores["real", "kid"].n_real == 15


def test_comparing_repeats(folders):
    assert compare(*folders) == compare(*folders)


def test_folders_are_checked_before_anything_is_loaded(folders, tmp_path, monkeypatch):
    def fail(plugin, device):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(scoring, "load_extractor", fail)
    with pytest.raises(DataError, match="absent' is no folder"):
        compare(folders[0], tmp_path / "absent")


def test_three_real_images_are_too_few(folders):
    for path in sorted(folders[0].rglob("*.png"))[3:]:
        path.unlink()
    with pytest.raises(SampleSizeError, match="found 3 images, expected at least 4"):
        compare(*folders)


def test_unknown_features_are_named(folders, monkeypatch):
    monkeypatch.setattr(scoring, "load_extractor", LOAD_EXTRACTOR)
    with pytest.raises(UnknownPluginError, match=r"'blocks'.*efficientnet_lite0"):
        compare(*folders)
