from dataclasses import astuple

import pytest
import torch

from pipeline.contracts import TumorReport
from stages.components.judge.network import SIDES, Naming
from stages.generate.guidance._loss import SIZE_RANGES, location_loss

SIDE = 64
REGIONS = ("convexity", "falx")
NOTHING = torch.full((1, 1, SIDE, SIDE), -12.0)


def report(**changes):
    given = {"tumor": True, "side": "left", "size": "medium", "location": "falx"}
    return TumorReport(**(given | changes))


def disc(share, strength=12.0):
    """Logits of a disc of a share of the head, in the middle."""
    axis = (2 * (torch.arange(SIDE) + 0.5) / SIDE) - 1
    inside = torch.hypot(axis[None, :], axis[:, None]) < 2 * (share * 0.55 / torch.pi) ** 0.5
    return torch.where(inside, strength, -strength)[None, None]


def named(region="falx", side="left", sure=9.0):
    return Naming(
        sure * torch.eye(len(REGIONS))[[REGIONS.index(region)]],
        sure * torch.eye(len(SIDES))[[SIDES.index(side)]],
        torch.zeros(1, 1),
    )


def loss(lesion, seen, **changes):
    return float(location_loss(lesion, seen, [report(**changes)], REGIONS))


def test_sizes_follow_one_another():
    assert SIZE_RANGES == {"small": (0.002, 0.008), "medium": (0.008, 0.02), "large": (0.02, 0.1)}


def test_the_loss_is_least_for_what_was_asked_for():
    right = loss(disc(0.014), named())
    assert right < 0.01
    for lesion, seen in (
        (disc(0.014), named(side="right")),
        (disc(0.014), named(region="convexity")),
        (disc(0.002), named()),
        (disc(0.05), named()),
    ):
        assert loss(lesion, seen) > right + 0.7


def test_no_lesion_is_worse_than_one_that_lies_where_it_was_not_asked_for():
    astray = named(region="convexity", side="right")
    for size, area in (("small", 0.006), ("medium", 0.016), ("large", 0.05)):
        assert loss(disc(area), astray, size=size) + 0.9 < loss(NOTHING, astray, size=size)


@pytest.mark.parametrize("side", ["bilateral", "unknown", None])
def test_what_the_judge_does_not_know_is_not_asked_of_it(side):
    astray = named(region="convexity", side="right")
    assert loss(disc(0.014), astray, side=side, location="thalamus") < 0.01
    blind = Naming(torch.zeros(1, 1), named().side, torch.zeros(1, 1))
    assert float(location_loss(disc(0.014), blind, [report()], ())) < 0.01


def test_no_tumor_wants_no_lesion_and_an_unstated_one_nothing():
    assert loss(NOTHING, named(), tumor=False) < 0.01
    assert loss(disc(0.01), named(), tumor=False) > 1
    assert loss(disc(0.01), named(), tumor=None) == loss(NOTHING, named(), tumor=None) == 0


def test_images_are_judged_one_by_one():
    lesion = torch.cat([disc(0.001, 6.0), disc(0.03, 6.0)]).requires_grad_()
    both = [
        torch.cat(parts)
        for parts in zip(astuple(named()), astuple(named("convexity")), strict=True)
    ]
    found = location_loss(lesion, Naming(*both), [report(), report(tumor=False)], REGIONS)
    alone = [
        float(location_loss(lesion.detach()[:1], named(), [report()], REGIONS)),
        float(location_loss(lesion.detach()[1:], named(), [report(tumor=False)], REGIONS)),
    ]
    assert found.tolist() == pytest.approx(alone)
    (gradient,) = torch.autograd.grad(found[0], lesion)
    assert gradient[1].abs().max() == 0
    assert gradient[0].min() < 0 and gradient[0].max() <= 0  # too small: more of it
