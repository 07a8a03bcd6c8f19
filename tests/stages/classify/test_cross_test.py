"""Test slices of another source: judged by the same states, once, and kept apart from training."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import PredictionRecord, write_records
from pipeline.errors import SampleSizeError, SplitLeakError
from stages.classify import stage as classify
from tests.stages.classify.parts import SHORT, counting, draw, run, write_slices

TWO_SEEDS = SHORT.model_copy(update={"num_seeds": 2})


def write_elsewhere(root):
    """Slices of another source: the same kind of tumour, on other heads."""
    slices = write_slices(root, {"test": 8})
    rng = np.random.default_rng(9)
    for row in slices.records():
        image = Image.fromarray(draw(rng, row.label)).convert("RGB")
        image.save(slices.root / row.image_path)
    return slices


@pytest.fixture(scope="module")
def tested(tmp_path_factory, inputs):
    root = tmp_path_factory.mktemp("cross")
    others = {"clinic": write_elsewhere(root / "elsewhere")}
    both = classify.ClassifyInputs(inputs.preprocess, {}, others)
    return run(root / "out", both)


@pytest.fixture(scope="module")
def short(tmp_path_factory, inputs):
    """Two seeds of few steps, with what they were made of."""
    root = tmp_path_factory.mktemp("short")
    others = {"clinic": write_elsewhere(root / "elsewhere")}
    both = classify.ClassifyInputs(inputs.preprocess, {}, others)
    return (*run(root / "out", both, TWO_SEEDS), both)


def test_rows_stand_under_the_source_s_own_name(tested):
    scores, output = tested
    for arm in ("real", "baseline/intensity_only"):
        row = scores[arm, "accuracy", "cross_test:clinic"]
        assert row.n_real == 24
        assert row.low <= row.value <= row.high
        assert scores[arm, "auroc", "cross_test:clinic"].n_real == 24
        assert scores[arm, "accuracy", "all"].n_real == 30
    assert scores["real", "accuracy", "cross_test:clinic"].value > 0.9  # it is the same task
    assert output.counts["n_test_clinic"] == 24


def test_nothing_else_moves(short, tmp_path):
    scores, output, both = short
    alone = classify.ClassifyInputs(both.preprocess, {})
    expected, plain = run(tmp_path / "out", alone, TWO_SEEDS)
    assert {key: row for key, row in scores.items() if not key[2].startswith("cross")} == expected
    assert output.notes["test_use"] == plain.notes["test_use"]


def test_the_same_state_looked_once_at_either_source(short):
    _, output, _ = short
    here = output.notes["test_use"]["binary"]["looks"]
    there = output.notes["cross_test"]["clinic"]["test_use"]["binary"]
    assert set(here) == set(there["looks"]) == {"real, seed 0", "real, seed 1"}
    for key, look in there["looks"].items():
        assert look["looks"] == 1
        assert look["state_sha256"] == here[key]["state_sha256"]
    path = output.root / "runs" / "binary" / "cross_test" / "clinic" / "real-1.json"
    assert json.loads(path.read_text())["test_sha256"] == there["sha256"]


def test_predictions_are_kept_apart(short):
    _, output, _ = short
    lines = (output.root / "cross_test" / "clinic" / "predictions.jsonl").read_text().splitlines()
    rows = [PredictionRecord.model_validate_json(line) for line in lines]
    assert len(rows) == 24 * (2 + 3)  # two seeds, three baselines


def test_a_kill_between_the_sources_changes_nothing(short, add_file, tmp_path):
    both = short[2]
    add_file(registry.CLASSIFIERS, "counting")
    first, second = tmp_path / "first", tmp_path / "second"
    _, whole = run(tmp_path / "whole", both, counting(first, TWO_SEEDS))
    calls = first.read_text().splitlines()
    with pytest.raises(KeyboardInterrupt):  # seed 1 has predicted elsewhere, and not yet here
        run(tmp_path / "out", both, counting(second, TWO_SEEDS, killed_at=len(calls)))
    second.unlink()
    _, resumed = run(tmp_path / "out", both, counting(second, TWO_SEEDS))
    assert second.read_text().splitlines() == calls[len(calls) // 2 :]  # seed 1 alone
    assert calls[-2:] == ["24", "30"]
    for path in sorted(whole.root.rglob("*.json*")):
        assert (resumed.root / path.relative_to(whole.root)).read_bytes() == path.read_bytes()


def test_slices_that_trained_are_refused_by_their_pixels(tmp_path, inputs):
    slices = write_elsewhere(tmp_path / "elsewhere")
    seen = next(row for row in inputs.preprocess.records() if row.split == "val")
    content = inputs.preprocess.path(seen.image_path).read_bytes()
    (slices.root / "test-glioma-3.png").write_bytes(content)
    both = classify.ClassifyInputs(inputs.preprocess, {}, {"clinic": slices})
    message = f"'test-glioma-3' of classify.cross_test.clinic has the pixels of '{seen.slice_id}'"
    with pytest.raises(SplitLeakError, match=message):
        run(tmp_path / "out", both, SHORT)


def test_a_source_without_test_slices_is_refused(tmp_path, inputs):
    slices = write_slices(tmp_path / "elsewhere", {"train": 2})
    both = classify.ClassifyInputs(inputs.preprocess, {}, {"clinic": slices})
    with pytest.raises(SampleSizeError, match=r"cross_test\.clinic needs at least 2 .* found 0"):
        run(tmp_path / "out", both, SHORT)


def test_classes_that_are_not_trained_here_are_left_out_of_that_task(tmp_path, inputs):
    slices = write_elsewhere(tmp_path / "elsewhere")
    rows = [row.model_copy(update={"label": "meningioma"}) if row.label == "glioma" else row
            for row in slices.records()]  # fmt: skip
    write_records(slices.root / "records.jsonl", rows)
    both = classify.ClassifyInputs(inputs.preprocess, {}, {"clinic": slices})
    config = SHORT.model_copy(update={"tasks": ("binary", "four_class"), "baselines": ()})
    scores, _ = run(tmp_path / "out", both, config)
    assert scores["real", "accuracy", "cross_test:clinic"].n_real == 24
    assert scores["real", "class_accuracy", "cross_test:clinic"].n_real == 16
