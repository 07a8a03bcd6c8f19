import numpy as np
import pytest

from stages.evaluate import ssim


def pictures(n, seed=0, noise=20):
    rng = np.random.default_rng(seed)
    axis = np.linspace(0, 9, ssim.SIZE_PX)
    smooth = 127 + 80 * np.sin(axis)[:, None] * np.cos(axis * 1.3)[None, :]
    return np.clip(smooth + rng.normal(0, noise, (n, *smooth.shape)), 0, 255).astype(np.uint8)


def test_an_image_is_like_itself():
    assert ssim.ms_ssim(pictures(3), pictures(3)) == pytest.approx(np.ones(3), abs=1e-6)


def test_equals_torchmetrics():
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    first, second = pictures(2), pictures(2, seed=1, noise=60)
    tensors = [torch.from_numpy(x).double()[:, None] / 255 for x in (first, second)]
    expected = multiscale_structural_similarity_index_measure(
        *tensors, data_range=1.0, reduction="none"
    )
    # Ours is float32, where a variance as a difference loses three digits.
    assert ssim.ms_ssim(first, second) == pytest.approx(expected.numpy(), rel=3e-4)


def test_more_noise_is_less_alike():
    clean, noisy = pictures(5, seed=1), pictures(5, seed=2, noise=90)
    assert (ssim.ms_ssim(pictures(5), noisy) < ssim.ms_ssim(pictures(5), clean)).all()


def test_batches_do_not_matter():
    first, second = pictures(ssim.BATCH + 3), pictures(ssim.BATCH + 3, seed=2, noise=90)
    alone = [ssim.ms_ssim(first[[k]], second[[k]])[0] for k in range(len(first))]
    assert ssim.ms_ssim(first, second) == pytest.approx(np.asarray(alone), rel=1e-6)


def test_no_pairs_give_no_values():
    none = np.zeros((0, ssim.SIZE_PX, ssim.SIZE_PX), np.uint8)
    assert len(ssim.ms_ssim(none, none)) == 0
