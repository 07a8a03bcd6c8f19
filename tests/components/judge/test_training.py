"""A judge that learns: bright blobs within seconds, the same after a kill, and its threshold."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError
from stages.components.judge import training
from stages.components.judge.network import Judge, JudgeNet
from stages.components.judge.reading import dice, read_images
from stages.components.judge.training import (
    augment,
    calibrate,
    dice_loss,
    held_out_loss,
    known_loss,
    train,
)
from tests.components.judge.parts import SHORT, SIZE, TINY, make_data, without_tumors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("judge")
    judge = train(make_data(48), None, TINY, folder, SHORT, "cpu", lines.append)
    return judge, lines


def test_the_loss_falls(trained):
    losses = [float(re.search(r"loss ([\d.]+)", line).group(1)) for line in trained[1]]
    assert len(losses) == 4
    assert losses[-1] < 0.6 * losses[0]


def test_blobs_that_it_never_saw_are_marked_better_than_by_chance(trained):
    fresh = make_data(30, seed=9)
    found = [
        dice(reading.patch, lesion)
        for reading, lesion in zip(
            read_images(trained[0], fresh.images), fresh.lesions, strict=True
        )
        if lesion.any()
    ]
    by_chance = fresh.lesions[fresh.has_tumor].mean()  # a random mask of the same share
    assert by_chance < 0.1
    assert np.mean(found) > 0.6


def test_the_threshold_is_chosen_between_the_two_kinds(trained):
    held_out = make_data(30, seed=5)
    judge = calibrate(trained[0], held_out)
    readings = read_images(judge, held_out.images)
    surest = np.array([reading.confidence for reading in readings])
    means = [surest[held_out.has_tumor == kind].mean() for kind in (False, True)]
    assert means[0] < judge.config.least_confidence < means[1]
    found = [reading.report.tumor for reading in readings]
    assert np.mean(np.array(found) == held_out.has_tumor) > 0.85


def test_slices_of_one_kind_leave_the_threshold_as_it_is(trained):
    assert calibrate(trained[0], without_tumors(make_data(4))) is trained[0]


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    data = make_data(12)
    lines: list[str] = []

    def run(folder, steps):
        # equal rates at every step, so that a shorter run is the beginning of a longer one
        settings = replace(SHORT, steps=steps, warmup_steps=10, checkpoint_every=1)
        (tmp_path / folder).mkdir(exist_ok=True)
        return train(data, None, TINY, tmp_path / folder, settings, "cpu", lines.append)

    expected = run("whole", 3)
    run("broken", 2)
    resumed = run("broken", 3)
    assert "judge: going on at step 2" in lines
    for name, value in expected.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name


def test_held_out_slices_are_told_of_and_change_nothing(tmp_path):
    data, held_out = make_data(12), make_data(7, seed=9)
    settings = replace(SHORT, steps=4, batch_size=3, validate_every=2)
    lines: list[str] = []
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    judge = train(data, held_out, TINY, tmp_path / "with", settings, "cpu", lines.append)
    plain = train(data, None, TINY, tmp_path / "without", settings, "cpu", print)
    for name, value in plain.net.state_dict().items():
        assert torch.equal(value, judge.net.state_dict()[name]), name
    told = [float(line.split("held-out loss ")[1]) for line in lines if "held-out" in line]
    assert len(told) == 2
    assert told[-1] == pytest.approx(held_out_loss(judge.net, held_out, settings, "cpu"), abs=1e-4)
    assert told[0] != told[1]


def test_masks_without_a_tumour_teach_nothing(tmp_path):
    with pytest.raises(TrainingError, match="none of 6 slices has a tumour"):
        train(without_tumors(make_data(6)), None, TINY, tmp_path, SHORT, "cpu", print)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, monkeypatch):
    def broken(net, *_):
        return net(torch.zeros(1, 1, SIZE, SIZE)).lesion.mean() * float("nan")

    monkeypatch.setattr(training, "judge_loss", broken)
    with pytest.raises(TrainingError, match=r"step 1 is nan; lower the learning rate of 0\.005"):
        train(make_data(6), None, TINY, tmp_path, SHORT, "cpu", print)


def test_slices_and_masks_move_together_and_repeat():
    data = make_data(16)
    images = torch.from_numpy(data.images)[:, None].float() / 255
    lesions = torch.from_numpy(data.lesions)[:, None].float()
    shown, marked, mirrored = augment(images, lesions, np.random.default_rng(1))
    again, _, _ = augment(images, lesions, np.random.default_rng(1))
    assert torch.equal(shown, again)
    assert shown.shape == images.shape
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    assert 0 < mirrored.sum() < 16
    for row in np.flatnonzero(data.has_tumor):
        inside = shown[row][marked[row] > 0]
        outside = shown[row][(marked[row] == 0) & (shown[row] > 0.1)]
        assert float(inside.mean()) > float(outside.mean()) + 0.1, row
        was, now = (np.nonzero(m[0].numpy())[1].mean() - 15.5 for m in (lesions[row], marked[row]))
        if abs(was) > 5:
            assert (was * now < 0) == mirrored[row], row


def test_dice_loss_counts_slices_with_a_tumour_alone():
    marked = torch.zeros(2, 1, 4, 4)
    marked[0, 0, :2] = 1
    sure = 50 * (2 * marked - 1)
    assert float(dice_loss(sure, marked)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(-sure, marked)) == pytest.approx(1 - 1 / 17, abs=1e-6)
    wrong_elsewhere = sure.clone()
    wrong_elsewhere[1] = 50
    assert float(dice_loss(wrong_elsewhere, marked)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(sure, torch.zeros_like(marked))) == 0


def test_unknown_targets_are_left_out():
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    known = known_loss(logits, torch.tensor([0, -1]))
    assert float(known) == pytest.approx(np.log1p(np.exp(-4.0)), rel=1e-4)
    assert float(known_loss(logits, torch.tensor([-1, -1]))) == 0


def test_random_weights_mark_next_to_nothing():
    torch.manual_seed(0)
    judge = Judge(JudgeNet(TINY), TINY)
    images = torch.from_numpy(make_data(4).images)[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    assert float((judge.segment(images) > 0).float().mean()) < 0.02
