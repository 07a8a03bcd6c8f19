"""Shares inside lesions against sums by hand; deletion on networks whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from stages.classify import attribution

SIZE = 20
HEAD = np.zeros((SIZE, SIZE), bool)
HEAD[2:18, 3:17] = True
LESION = np.zeros((SIZE, SIZE), bool)
LESION[5:8, 6:10] = True
UNIFORM = np.ones((SIZE, SIZE))


class Bright(nn.Module):
    """Sees a tumour where the mean of one place is bright."""

    def forward(self, images):
        score = 8 * images[:, 0, 5:8, 6:10].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_every_place_is_the_sum_there():
    rng = np.random.default_rng(0)
    found = rng.random((SIZE, SIZE))
    places = attribution.moved_shares(found, LESION, HEAD)
    inside = np.where(HEAD, found, 0) / found[HEAD].sum()
    assert places[0] == pytest.approx(inside[LESION].sum())
    by_hand = [
        inside[top : top + 3, left : left + 4].sum()
        for top in range(2, 16)
        for left in range(3, 14)
        if (top, left) != (5, 6)
    ]
    assert sorted(places[1:]) == pytest.approx(sorted(by_hand))


def test_a_map_that_knows_nothing_has_the_lesion_s_area_everywhere():
    share = attribution.area_share(LESION, HEAD)
    assert share == 12 / (16 * 14)
    for found in (UNIFORM, np.zeros((SIZE, SIZE)), np.where(HEAD, 0.0, 1.0)):
        places = attribution.moved_shares(found, LESION, HEAD)
        assert places == pytest.approx(np.full(len(places), share))


def test_a_lesion_that_leaves_the_head_may_be_moved_as_far():
    edge = np.zeros((SIZE, SIZE), bool)
    edge[0:4, 6:10] = True  # half outside
    places = attribution.moved_shares(UNIFORM, edge, HEAD)
    assert places[0] == pytest.approx(8 / (16 * 14))
    assert places.max() == pytest.approx(16 / (16 * 14))
    assert places.min() == pytest.approx(8 / (16 * 14))


def test_chance_of_maps_that_know_and_of_maps_that_do_not():
    rng = np.random.default_rng(1)
    sharp = attribution.moved_shares(LESION.astype(float), LESION, HEAD)
    means, p = attribution.chance_of_moves([sharp] * 3, num_draws=199, rng=rng)
    assert p == 1 / 200
    assert means.shape == (199,) and means.mean() < 0.3
    flat = attribution.moved_shares(UNIFORM, LESION, HEAD)
    means, p = attribution.chance_of_moves([flat] * 3, num_draws=199, rng=rng)
    assert p == 1
    assert means == pytest.approx(np.full(199, 12 / 224))


def test_pixels_are_ranked_within_the_head():
    found = np.zeros((1, 2, 3))
    found[0] = [[5, 1, 9], [1, 7, 3]]
    head = np.array([[[True, True, False], [True, True, True]]])
    ranks = attribution.rank_pixels(found, head)[0]
    assert ranks.tolist() == [[0.2, 0.6, 2.0], [0.8, 0.0, 0.4]]


def test_deletion_is_fast_where_the_map_knows():
    image = torch.full((1, 3, SIZE, SIZE), -1.0)
    image[:, :, 5:8, 6:10] = 1.0
    heads = HEAD[None]
    knows, misses = LESION[None].astype(float), 1.0 - LESION[None]
    fast, slow = (
        attribution.follow_deletion(Bright(), image, maps, heads, 1) for maps in (knows, misses)
    )
    assert fast.shape == (1, 1 + attribution.NUM_STEPS)
    assert fast[0, 0] == slow[0, 0] == pytest.approx(1 / (1 + np.exp(-8)))
    assert fast[0, -1] == slow[0, -1] < 0.1  # all is covered at the end
    assert fast[0, 3] < 0.1 < 0.9 < slow[0, -4]
    areas = [attribution.area_under(curve)[0] for curve in (fast, slow)]
    assert areas[0] < 0.2 < 0.8 < areas[1]


def test_area_under_a_straight_line():
    curves = np.array([np.linspace(1, 0, 21), np.full(21, 0.25)])
    assert attribution.area_under(curves) == pytest.approx([0.5, 0.25])


def test_blotches_are_coarse_and_repeat():
    first, again = (
        attribution.draw_blotches(2, (32, 40), np.random.default_rng(4)) for _ in range(2)
    )
    assert first.shape == (2, 32, 40)
    assert (first == again).all()
    assert first.min() >= 0 and first.max() <= 1
    steps = np.abs(np.diff(first, axis=1)).mean()
    assert steps < 0.7 * first.std()  # of white noise 1.15
