"""The judge's network: its size, its seam, its files."""

import json

import pytest
import torch

from pipeline.errors import MissingWeightsError, ValueRangeError
from stages.components.judge.network import (
    Judge,
    JudgeConfig,
    JudgeNet,
    coordinates,
    mean_under,
    peak_logit,
)
from tests.components.judge.parts import TINY

REGIONS = tuple(f"region {number}" for number in range(16))


def new_judge(config=TINY):
    torch.manual_seed(0)
    return Judge(JudgeNet(config), config)


def test_the_default_judge_is_small(tmp_path):
    judge = new_judge(JudgeConfig(regions=REGIONS))
    assert 0.5e6 < sum(p.numel() for p in judge.net.parameters()) <= 1e6
    judge.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 2e6


def test_the_surest_pixels_tell_whether_there_is_a_tumour():
    logits = torch.full((2, 1, 80, 80), -9.0)  # 6,400 px: eight of them count
    logits[0, 0, 3, :4] = 7
    logits[1, 0, :2, :8] = 3
    assert peak_logit(logits).tolist() == [-1, 3]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (16, 16)])
def test_any_multiple_of_16_is_marked_pixel_by_pixel(height, width):
    judge = new_judge()
    images = torch.rand(2, 3, height, width) * 2 - 1
    assert judge.segment(images).shape == (2, 1, height, width)
    assert judge.look(images).orientation.shape == (2, 3)
    assert judge.segment(images).dtype == torch.float32


def test_segment_is_differentiable_and_weights_stay_as_they_are():
    judge = new_judge()
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    judge.segment(images).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in judge.net.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueRangeError, match=rf"of 16 px, found \({shape[0]}, {shape[1]}"):
        new_judge().segment(torch.zeros(shape))


def test_a_judge_comes_back_as_it_was_saved(tmp_path):
    judge = new_judge()
    judge.save(tmp_path)
    again = Judge.load(tmp_path)
    assert again.config == judge.config
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(again.segment(images), judge.segment(images), atol=0.02, rtol=0.02)
    assert again.device == torch.device("cpu")
    assert not any(parameter.requires_grad for parameter in again.net.parameters())


def test_files_that_are_absent_or_do_not_fit_are_named(tmp_path):
    with pytest.raises(
        MissingWeightsError, match=r"no file .*config\.json'; make it with: mrisynth"
    ):
        Judge.load(tmp_path)
    new_judge().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "widths": [8, 8, 16, 24]}))
    with pytest.raises(MissingWeightsError, match=r"does not fit config\.json"):
        Judge.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(MissingWeightsError, match=r"is damaged .*'depth'"):
        Judge.load(tmp_path)


def test_a_judge_of_no_regions_and_shapes_names_none():
    judge = new_judge(JudgeConfig(image_size=32, widths=(8, 8, 16, 16)))
    images = torch.zeros(2, 3, 32, 32)
    seen = judge.look(images)
    named, _ = judge.name(seen, seen, torch.ones(2, 1, 32, 32))
    assert named.region is None
    assert named.shape is None
    assert named.side in ("left", "right", "midline")


def test_places_are_measured_from_edge_to_edge():
    grid = coordinates(torch.zeros(1, 1, 2, 4))
    assert grid[0, 0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[0, 1, :, 0].tolist() == [-0.5, 0.5]
    weight = torch.zeros(1, 1, 2, 4)
    weight[0, 0, 1, 3] = 2
    assert mean_under(weight, grid).tolist() == [[0.75, 0.5]]
    assert mean_under(torch.zeros_like(weight), grid).tolist() == [[0, 0]]
