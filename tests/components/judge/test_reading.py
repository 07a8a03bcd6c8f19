"""From a marked patch to words: the largest patch, its size, and what makes it no tumour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.contracts import TumorReport
from pipeline.errors import DataError
from stages.components.judge.network import Judge, JudgeNet, Named
from stages.components.judge.reading import (
    BATCH,
    describe,
    dice,
    largest_patch,
    read_core,
    read_images,
)
from tests.components.judge.parts import SIZE, TINY, Analytic, disc, picture


def test_the_largest_patch_is_kept_and_corners_touch():
    marked = np.zeros((6, 6), bool)
    marked[0, 0] = marked[1, 1] = marked[2, 2] = True
    marked[5, 4:] = True
    assert largest_patch(marked).sum() == 3
    assert not largest_patch(np.zeros((3, 3), bool)).any()


def test_a_blob_is_worded_as_truth_words_it():
    image, blob = picture("left")
    found = describe(image, blob, "axial", Named("falx", "left", "round"), 0.9, 0.5)
    assert found.report == TumorReport(
        tumor=True,
        location="falx",
        side="left",
        size="large",
        shape="round",
        intensity="hyperintense",
        orientation="axial",
    )
    assert found.confidence == 0.9
    assert found.place == pytest.approx((16.5 / SIZE, 9.5 / SIZE))
    sagittal = describe(image, blob, "sagittal", Named("falx", "left", "round"), 0.9, 0.5)
    assert sagittal.report.side == "unknown"


def test_less_sure_than_the_threshold_is_no_tumour():
    image, blob = picture("left")
    found = describe(image, blob, "axial", Named("falx", "left", "round"), 0.4, 0.5)
    assert found.report == TumorReport(tumor=False, orientation="axial")
    assert not found.patch.any()
    assert found.confidence == 0.4
    assert found.place == pytest.approx((16.5 / SIZE, 9.5 / SIZE))


def test_a_tumour_that_no_pixel_is_sure_of_lies_where_the_surest_are():
    judge = Analytic()
    judge.config = replace(judge.config, least_confidence=0.2)
    judge.bright = -1.0  # a quarter sure
    image, blob = picture("left")
    (found,) = read_images(judge, [image])
    assert found.confidence == pytest.approx(0.269, abs=1e-3)
    assert found.report.tumor and np.array_equal(found.patch, blob)


def test_images_are_read_in_order_and_beyond_one_batch():
    sides = ["left", "right", None] * (BATCH // 2)
    readings = read_images(Analytic(), (picture(side, "coronal")[0] for side in sides))
    assert [reading.report.side for reading in readings] == sides
    assert {reading.report.orientation for reading in readings} == {"coronal"}
    assert len(readings) > BATCH


def test_of_a_mirrored_slice_the_judge_reads_the_mirrored_answer():
    torch.manual_seed(0)
    config = replace(TINY, least_confidence=0.0)
    net = JudgeNet(config)
    for part in net.parameters():  # far from symmetric, and sure of different things
        torch.nn.init.normal_(part, std=0.5)
    judge = Judge(net, config)
    image, _ = picture("left")
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 40, image.shape), 0, 255)
    for row in (noisy.astype(np.uint8), picture("midline")[0], image):
        (seen,), (back,) = read_images(judge, [row]), read_images(judge, [row[:, ::-1].copy()])
        assert seen.patch.any() and np.array_equal(seen.patch[:, ::-1], back.patch)
        assert seen.confidence == pytest.approx(back.confidence, abs=1e-6)
        other = {"left": "right", "right": "left"}
        side = seen.report.side
        assert back.report == seen.report.model_copy(update={"side": other.get(side, side)})


def test_a_mask_file_is_read_as_its_core(tmp_path):
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    Image.fromarray(np.kron(mask, np.ones((8, 8), np.uint8))).save(tmp_path / "mask.png")
    assert not read_core(tmp_path / "mask.png", 4)[:2].any()
    assert read_core(tmp_path / "mask.png", 4)[2:].all()
    assert not read_core(None, SIZE).any()


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png' cannot be read"):
        read_core(tmp_path / "gone.png", SIZE)


def test_dice_is_the_share_in_common():
    whole, half = disc(16, 16, 5), disc(16, 16, 5) & (np.arange(SIZE) < 16)
    assert dice(whole, whole) == 1
    assert dice(whole, half) == pytest.approx(2 * half.sum() / (whole.sum() + half.sum()))
    assert dice(whole, ~whole) == 0
    assert dice(whole & False, whole & False) == 1
