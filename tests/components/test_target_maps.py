import pytest
import torch

from pipeline.contracts import TumorReport
from stages.components.prompts import PUBLISHED_KINDS, TRUTH_KINDS
from stages.components.slice_truth import SIZE_LIMITS
from stages.components.target_maps import PLACES, SIZE_RANGES, location_loss, place_map
from stages.components.tumor_report import ORIENTATIONS, REGIONS

SIDE = 64


def report(**changes):
    given = {"tumor": True, "side": "left", "size": "medium", "orientation": "axial"}
    return TumorReport(**(given | changes))


def disc(across, down, share, strength=12.0):
    """Logits of a disc of a share of the head, centred in shares of half the image."""
    axis = (2 * (torch.arange(SIDE) + 0.5) / SIDE) - 1
    radius = 2 * (share * 0.55 / torch.pi) ** 0.5
    inside = torch.hypot(axis[None, :] - across, axis[:, None] - down) < radius
    return torch.where(inside, strength, -strength)[None, None]


def loss(logits, **changes):
    return float(location_loss(logits, [report(**changes)]))


def test_every_region_that_a_prompt_names_has_a_place_in_every_plane():
    assert set(PLACES) == set(ORIENTATIONS)
    asked = {
        region
        for kinds in (TRUTH_KINDS, PUBLISHED_KINDS)
        for kind in kinds.values()
        for region in kind.regions
    }
    for places in PLACES.values():
        assert asked <= set(places) <= set(REGIONS)
        for across, down, *reach in places.values():
            assert max(abs(across), abs(down)) < 0.8
            assert 0.1 < min(reach) <= max(reach) < 0.9


def test_sizes_are_those_of_ground_truth():
    limits = [limit for _, limit in SIZE_LIMITS]
    assert [most for _, most in SIZE_RANGES.values()][:2] == limits[:2]
    assert list(SIZE_RANGES) == [name for name, _ in SIZE_LIMITS]


def test_left_and_right_are_mirrored_and_apart():
    left, right = (place_map(report(side=side), SIDE, SIDE) for side in ("left", "right"))
    torch.testing.assert_close(left, right.flip(1))
    assert left[:, : SIDE // 2 - 6].min() > 0.95
    assert left[:, SIDE // 2 + 6 :].max() < 0.05
    region = {"location": "temporal lobe"}
    placed = place_map(report(**region), SIDE, SIDE)
    assert (placed <= left + 1e-6).all()
    torch.testing.assert_close(
        placed, place_map(report(side="right", **region), SIDE, SIDE).flip(1)
    )


@pytest.mark.parametrize("side", ["bilateral", "unknown", None])
def test_a_region_without_a_side_is_on_both(side):
    found = place_map(report(side=side, location="frontal lobe"), SIDE, SIDE)
    torch.testing.assert_close(found, found.flip(1))
    assert found[: SIDE // 4].max() > 0.9  # anterior is up
    assert found[-SIDE // 4 :].max() < 0.1


def test_the_middle_and_the_sagittal_plane():
    middle = place_map(report(side="midline"), SIDE, SIDE)
    assert middle[:, SIDE // 2].min() > 0.9
    assert middle[:, : SIDE // 4].max() < 0.01
    frontal, occipital = (
        place_map(
            report(orientation="sagittal", side="unknown", location=location), SIDE, SIDE
        ).sum(dim=0)
        for location in ("frontal lobe", "occipital lobe")
    )
    assert frontal.argmax() < SIDE // 2 < occipital.argmax()  # anterior is on the left


def test_unknown_places_are_anywhere_and_no_tumor_is_nowhere():
    anywhere = place_map(report(side=None, location="thalamus"), SIDE, SIDE)
    assert anywhere.min() == 1
    assert place_map(TumorReport(tumor=False), SIDE, SIDE).max() == 0


def test_the_loss_is_least_where_it_was_asked_for():
    right_place = loss(disc(-0.4, 0.15, 0.014), location="temporal lobe")
    assert right_place < 0.2
    for wrong in (
        disc(0.4, 0.15, 0.014),  # other side
        disc(-0.25, 0.65, 0.014),  # other region
        disc(-0.4, 0.15, 0.002),  # too small
        disc(-0.4, 0.15, 0.05),  # too large
        torch.full((1, 1, SIDE, SIDE), -12.0),
    ):
        assert loss(wrong, location="temporal lobe") > right_place + 0.4


def test_no_lesion_is_worse_than_one_of_which_half_lies_elsewhere():
    for size, area in (("small", 0.006), ("medium", 0.016), ("large", 0.05)):
        astride = disc(0, 0.15, area)
        none = torch.full((1, 1, SIDE, SIDE), -12.0)
        asked = {"location": None, "side": "left", "size": size}
        assert loss(astride, **asked) + 0.4 < loss(none, **asked), size


def test_anywhere_in_the_region_is_as_good():
    for across, down in ((-0.3, 0.0), (-0.5, 0.3)):
        assert loss(disc(across, down, 0.014), location="temporal lobe") < 0.35


def test_no_tumor_wants_no_lesion_and_an_unstated_one_nothing():
    nothing, lesion = torch.full((1, 1, SIDE, SIDE), -12.0), disc(0, 0, 0.01)
    assert loss(nothing, tumor=False) < 0.01
    assert loss(lesion, tumor=False) > 1
    assert loss(lesion, tumor=None) == loss(nothing, tumor=None) == 0


def test_images_are_judged_one_by_one_and_gradients_point_the_right_way():
    logits = torch.cat([disc(0.4, 0.15, 0.014, 6.0), disc(-0.4, 0.15, 0.014, 6.0)]).requires_grad_()
    reports = [report(), report()]
    found = location_loss(logits, reports)
    alone = [float(location_loss(logits.detach()[k : k + 1], reports[:1])) for k in range(2)]
    assert found.tolist() == pytest.approx(alone)
    (gradient,) = torch.autograd.grad(found[0], logits)
    assert gradient[1].abs().max() == 0
    assert gradient[0, 0, :, : SIDE // 4].max() < 0  # more on the left
    assert gradient[0, 0, :, -SIDE // 4 :].min() > 0  # less on the right
