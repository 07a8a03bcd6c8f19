import pytest
import torch

from stages.classify.augmentation import Ranges, augment


def batch(count=6):
    images = torch.full((count, 1, 24, 24), -1.0)
    images[:, :, 8:16, 6:12] = 0.5
    return images.expand(-1, 3, -1, -1)


def test_shape_range_and_equal_channels_are_kept():
    found = augment(batch(), seed=1)
    assert found.shape == (6, 3, 24, 24) and found.dtype == torch.float32
    assert found.min() >= -1 and found.max() <= 1
    assert torch.equal(found[:, 0], found[:, 2])


def test_background_stays_black():
    assert torch.equal(
        augment(torch.full((4, 3, 8, 8), -1.0), seed=1), torch.full((4, 3, 8, 8), -1.0)
    )


def test_one_seed_repeats_two_differ_and_so_do_slices():
    first = augment(batch(), seed=1)
    assert torch.equal(first, augment(batch(), seed=1))
    assert not torch.equal(first, augment(batch(), seed=2))
    assert not torch.equal(first[0], first[1])


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augment(batch(), seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_without_ranges_only_the_mirror_is_left():
    images, one = batch(20), (1.0, 1.0)
    nothing = Ranges(max_turn_deg=0.0, scales=one, max_shift=0.0, gains=one, gammas=one)
    found = augment(images, seed=3, ranges=nothing)
    mirrored = [
        torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(found, images, strict=True)
    ]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 20


def test_what_is_shown_keeps_about_its_size():
    found = (augment(batch(40), seed=5) > -0.9)[:, 0].sum(dim=(1, 2)).float()
    assert found.mean() == pytest.approx(48, rel=0.5)
    assert found.min() > 20
