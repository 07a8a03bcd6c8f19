import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from stages.classify import training
from stages.classify.held_out import HeldOut, write_run
from stages.classify.training import ChosenNetwork, LossCurve

IMAGES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
IDS = ("a", "b", "c")


def trained():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    name = training.state_sha256(network.state_dict())
    curve = LossCurve((1, 2), (0.6, 0.5), (0.4, 0.7))
    return ChosenNetwork(network, curve, name, np.array([[0.25, 0.75]]))


def test_a_look_is_recorded_with_the_state_that_looked():
    held_out, state = HeldOut(IMAGES, IDS), trained()
    run = held_out.predict("real, seed 0", state, "cpu")
    assert np.asarray(run.probability).shape == (3, 2)
    assert np.asarray(run.probability).sum(axis=1) == pytest.approx(np.ones(3))
    assert run.chosen_step == 1 and run.val_probability == ((0.25, 0.75),)
    proof = held_out.proof()
    assert proof["num_slices"] == 3
    assert proof["looks"] == {
        "real, seed 0": {
            "looks": 1,
            "chosen_step": 1,
            "chosen_on": "validation loss",
            "state_sha256": state.state_sha256,
        }
    }


def test_a_second_look_is_refused():
    held_out = HeldOut(IMAGES, IDS)
    held_out.predict("real, seed 0", trained(), "cpu")
    with pytest.raises(TrainingError, match="'real, seed 0' has predicted the test slices before"):
        held_out.predict("real, seed 0", trained(), "cpu")


def test_a_state_that_was_not_chosen_is_refused():
    state = trained()
    with torch.no_grad():
        state.network[1].bias += 1
    with pytest.raises(TrainingError, match=f"chose the state {state.state_sha256[:12]} on"):
        HeldOut(IMAGES, IDS).predict("real, seed 0", state, "cpu")


def test_a_finished_run_is_remembered_for_the_same_slices_alone(tmp_path):
    path = tmp_path / "run.json"
    held_out = HeldOut(IMAGES, IDS)
    run = held_out.predict("k", trained(), "cpu")
    write_run(path, run)
    again = HeldOut(IMAGES, IDS)
    assert again.remember("k", path) == run
    assert again.proof() == held_out.proof()
    with pytest.raises(TrainingError, match="has predicted the test slices before"):
        again.predict("k", trained(), "cpu")
    changed = IMAGES.copy()
    changed[0, 0, 0] += 1
    assert HeldOut(changed, IDS).remember("k", path) is None
    assert HeldOut(IMAGES, ("a", "b", "d")).remember("k", path) is None
    assert again.remember("k", tmp_path / "absent.json") is None
    for damage in ("", "{", '{"steps": [1]}'):
        path.write_text(damage)
        assert again.remember("k", path) is None
