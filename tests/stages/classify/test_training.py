import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.errors import TrainingError
from stages.classify import training
from stages.classify.training import LabelledImages, LossCurve, TrainingPhase, TrainingPlan

PLAN = TrainingPlan(
    batch_size=8,
    max_steps=40,
    learning_rate=2e-3,
    weight_decay=1e-3,
    warmup_steps=5,
    max_grad_norm=1.0,
    validate_every=10,
)


def easy(n, seed=0):
    """Dark slices, half of them with a bright square."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (n, 16, 16), dtype=np.uint8)
    is_tumor = np.arange(n) % 2 == 0
    images[is_tumor, 4:10, 4:10] = 230
    return LabelledImages(images, is_tumor.astype(np.intp))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(768, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2)
        )

    def forward(self, images):
        return self.layers(images)


def fit(seed=1, plan=PLAN, train=None, val=None, phases=None, build=Small, is_chosen=True):
    return training.train(
        build,
        phases=phases or [TrainingPhase(train or easy(40), plan.max_steps)],
        val=val or easy(20, seed=1),
        plan=plan,
        is_chosen=is_chosen,
        seed=seed,
        device="cpu",
        progress=lambda line: None,
    )


def test_it_learns_what_is_easy():
    trained = fit()
    network, curve = trained.network, trained.curve
    test = easy(30, seed=2)
    found = training.predict(network, test.images, "cpu").argmax(axis=1)
    assert (found == test.targets).mean() > 0.95
    assert curve.val_loss[-1] < curve.val_loss[0]
    assert curve.steps == (10, 20, 30, 40)
    assert not network.training


def test_the_last_state_is_kept_where_validation_may_not_choose():
    wrong = LabelledImages(easy(20, seed=1).images, 1 - easy(20, seed=1).targets)
    chosen, last = fit(val=wrong), fit(val=wrong, is_chosen=False)
    assert chosen.curve.chosen_step < 40 == last.curve.chosen_step
    assert last.curve.val_loss == chosen.curve.val_loss
    assert last.state_sha256 != chosen.state_sha256


def test_one_seed_repeats_and_two_differ():
    images = easy(10, seed=3).images
    first, again, other = (training.predict(fit(seed).network, images, "cpu") for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit()
    assert (torch.rand(3) == expected).all()


def test_the_state_with_the_lowest_validation_loss_is_kept():
    val = easy(20, seed=1)
    wrong = LabelledImages(val.images, 1 - val.targets)  # every step makes it worse
    trained = fit(val=wrong)
    assert trained.curve.chosen_step == 10
    probability = training.predict(trained.network, wrong.images, "cpu")
    assert (probability == trained.val_probability).all()
    loss = training.compute_loss(probability, wrong.targets)
    assert loss == pytest.approx(trained.curve.val_loss[0])
    assert trained.state_sha256 == training.state_sha256(trained.network.state_dict())


def test_only_states_of_the_last_phase_can_be_chosen():
    val = easy(20, seed=1)
    wrong = LabelledImages(val.images, 1 - val.targets)
    phases = [TrainingPhase(easy(40), 20), TrainingPhase(easy(40, seed=5), 20)]
    curve = fit(val=wrong, phases=phases).curve
    assert curve.steps == (10, 20, 30, 40)
    assert np.argmin(curve.val_loss) == 0
    assert curve.chosen_step == 30


def test_phases_follow_each_other():
    seen = []

    class Watched(Small):
        def forward(self, images):
            seen.append(round((float(images[0, 0, 0, 0]) + 1) * 127.5))
            return super().forward(images)

    dark, bright = easy(16), easy(16)
    dark.images[:] = 1
    bright.images[:] = 2
    val = easy(4)
    val.images[:] = 9
    plan = TrainingPlan(**{**PLAN.__dict__, "validate_every": 100})
    phases = [TrainingPhase(dark, 2), TrainingPhase(bright, 3)]
    fit(plan=plan, val=val, phases=phases, build=Watched)
    assert seen == [1, 1, 2, 2, 2, 9]


def test_augmentation_is_by_phase_and_changes_what_is_learnt():
    plain, changed = (
        fit(phases=[TrainingPhase(easy(40), 10, is_augmented)]).state_sha256
        for is_augmented in (False, True)
    )
    assert plain != changed
    assert changed == fit(phases=[TrainingPhase(easy(40), 10, True)]).state_sha256


def test_earliest_of_equal_states_is_named():
    assert LossCurve((1, 2, 3), (0.1,) * 3, (0.5, 0.2, 0.2)).chosen_step == 2


def test_the_rate_warms_up_to_a_constant(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit()
    assert rates[:5] == pytest.approx([4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3])
    assert rates[5:] == pytest.approx([2e-3] * 35)


def test_gradients_are_clipped(monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(plan=TrainingPlan(**{**PLAN.__dict__, "max_grad_norm": 0.01, "max_steps": 5}))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_prediction_does_not_depend_on_the_batch_size():
    network = fit().network
    images = easy(training.PREDICTION_BATCH + 6, seed=4).images
    whole = training.predict(network, images, "cpu")
    parts = [training.predict(network, images[k : k + 3], "cpu") for k in range(0, len(images), 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_an_epoch_shows_every_slice_once():
    batches = training.iter_batches(12, 4, seed=0)
    first, second = (np.concatenate([next(batches) for _ in range(3)]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert (first != second).any()
    assert len(next(training.iter_batches(3, 16, seed=0))) == 3


def test_input_is_three_equal_channels_in_range():
    batch = training.to_input(np.array([[[0, 255], [51, 102]]], np.uint8), "cpu")
    assert batch.shape == (1, 3, 2, 2)
    assert batch.dtype == torch.float32
    assert batch[0, 2].flatten().tolist() == pytest.approx([-1, 1, -0.6, -0.2])


def test_images_are_read_as_one_channel_of_one_size(tmp_path):
    Image.fromarray(np.full((64, 32, 3), 90, np.uint8)).save(tmp_path / "a.png")
    found = training.read_images([tmp_path / "a.png"], 32)
    assert found.shape == (1, 32, 32)
    assert found[0, 16, 16] == pytest.approx(90, abs=1)
    assert found[0, 16, 2] == 0  # padded, never squashed


def test_one_kind_alone_is_refused():
    only = easy(20)
    rows = only.targets == 1
    only = LabelledImages(only.images[rows], only.targets[rows])
    with pytest.raises(TrainingError, match="train has 10 slices of 1 kinds"):
        fit(train=only)


def test_no_validation_slices_are_refused():
    with pytest.raises(TrainingError, match="val has 0 slices of 0 kinds"):
        fit(val=LabelledImages(np.zeros((0, 16, 16), np.uint8), np.zeros(0, np.intp)))


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower .* 1e\+30"):
        fit(plan=TrainingPlan(**{**PLAN.__dict__, "learning_rate": 1e30, "warmup_steps": 0}))
