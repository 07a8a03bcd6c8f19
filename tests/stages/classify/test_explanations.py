"""Explanations within the stage: who is explained, what is scored, and what a kill changes."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pipeline.contracts import ScoreRecord, write_records
from stages.classify import explain, training
from stages.classify import stage as classify
from tests.stages.classify.parts import SHORT, SIZE, list_trained, run, write_arm, write_slices

NAMES = ("attention", "smooth_grad")
CONFIG = SHORT.model_copy(update={"explain": NAMES, "num_explained": 4, "baselines": ()})
LESION = (slice(4, 20), slice(4, 20))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Slices whose tumours have masks, but for one slice of a patient with a tumour elsewhere."""
    root = tmp_path_factory.mktemp("masked")
    slices = write_slices(root / "p", {"train": 6, "val": 3, "test": 5})
    rows = []
    for row in slices.records():
        if row.label != "notumor":
            mask = np.zeros((SIZE, SIZE), np.uint8)
            if row.slice_id != "test-glioma-0":
                mask[LESION] = 2
            Image.fromarray(mask).save(slices.root / f"{row.slice_id}-mask.png")
            row = row.model_copy(update={"mask_path": f"{row.slice_id}-mask.png"})
        rows.append(row)
    write_records(slices.root / "records.jsonl", rows)
    return classify.ClassifyInputs(slices, {"good": write_arm(root / "good", count=6)})


@pytest.fixture(scope="module")
def explained(tmp_path_factory, masked):
    return run(tmp_path_factory.mktemp("explained") / "out", masked, CONFIG)


def test_every_arm_is_explained_and_scored_by_every_method(explained):
    _, output = explained
    rows = (output.root / "records.jsonl").read_text().splitlines()
    found = [ScoreRecord.model_validate_json(line) for line in rows]
    for metric, higher in (("lesion_share", True), ("deletion_area", False)):
        for name in (metric, f"{metric}_by_chance"):
            own = [score for score in found if score.metric == name]
            assert {(s.arm, s.features) for s in own} == {
                (arm, method) for arm in ("real", "good") for method in NAMES
            }
            for score in own:
                assert score.higher_is_better is higher
                assert (score.n_real, score.group) == (4, "all")
                assert 0 <= score.value <= 1
    assert all(0 < s.p <= 1 for s in found if s.metric == "lesion_share")


def test_drawn_are_slices_whose_mask_shows_a_tumour_the_same_for_all(explained):
    arms = explained[1].notes["explanations"]["arms"]
    assert arms["real"]["drawn"] == arms["good"]["drawn"]
    assert len(arms["real"]["drawn"]) == 4
    for arm in arms.values():
        assert not {"test-glioma-0"} & set(arm["drawn"])
        assert not any("notumor" in name for name in arm["drawn"])


def test_wrong_ones_are_those_on_the_other_side_of_one_half(explained):
    notes = explained[1].notes
    for arm, facts in notes["explanations"]["arms"].items():
        counts = notes["confusion"][arm]
        wrong = counts["false_negative"] + counts["false_positive"]
        assert facts["num_wrong"] == wrong
        assert len(facts["wrong"]) == min(4, wrong)
        for name in facts["wrong"]:
            assert (facts["slices"][name] >= 0.5) == ("notumor" in name)


def test_maps_are_kept_in_the_order_of_the_notes(explained):
    _, output = explained
    facts = output.notes["explanations"]["arms"]["real"]
    with np.load(output.root / facts["maps"], allow_pickle=False) as maps:
        assert set(maps.files) == set(NAMES)
        for name in NAMES:
            assert maps[name].shape == (len(facts["slices"]), SIZE, SIZE)
            assert maps[name].max() == 1
    curve = facts["scores"]["attention"]["curve"]
    assert len(curve) == 21
    drawn = [facts["slices"][name] for name in facts["drawn"]]
    assert curve[0] == pytest.approx(np.mean(drawn), abs=1e-4)
    assert 0 < facts["scores"]["attention"]["area_share"] <= 1


def test_the_state_that_is_explained_is_the_one_that_judged(explained):
    _, output = explained
    state = load_file(output.root / "weights" / "good-0.safetensors")
    digest = training.state_sha256(state)
    look = output.notes["test_use"]["binary"]["looks"]["good, seed 0"]
    assert look["state_sha256"] == digest
    assert look["looks"] == 1


def test_methods_name_the_maps_and_their_sources(explained):
    text = explained[1].notes["methods"]
    assert "attention, smooth_grad" in text and "Smilkov et al., 2017" in text


def test_a_run_killed_while_explaining_ends_with_the_same_bytes(explained, masked, tmp_path):
    _, whole = explained

    def killed(line):
        if line.startswith("classify: explain "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", masked, CONFIG, progress=killed)
    lines = []
    _, resumed = run(tmp_path / "killed", masked, CONFIG, progress=lines.append)
    assert list_trained(lines) == []  # nothing is trained again
    for path in sorted(p for p in whole.root.rglob("*") if p.is_file()):
        assert (resumed.root / path.relative_to(whole.root)).read_bytes() == path.read_bytes()
    assert resumed.notes == whole.notes


def test_without_masks_any_slice_of_a_tumour_is_drawn_and_no_share_is_scored(tmp_path, inputs):
    one = classify.ClassifyInputs(inputs.preprocess, {})
    config = CONFIG.model_copy(update={"explain": ("attention",), "num_explained": 3})
    scores, output = run(tmp_path / "out", one, config)
    assert ("real", "deletion_area", "all") in scores
    assert ("real", "lesion_share", "all") not in scores
    assert len(output.notes["explanations"]["arms"]["real"]["drawn"]) == 3


def test_a_method_that_a_network_does_not_allow_is_named():
    class Plain(nn.Module):
        pass

    slices = explain.Slices((), np.zeros((0, 8, 8), np.uint8), np.zeros((0, 8, 8), bool), ())
    maps, skipped = explain.map_slices(Plain(), slices, NAMES, 0, "cpu")
    assert skipped == {"attention": "Plain has no attention of a class token"}
    assert maps["smooth_grad"].shape == (0, 8, 8)
