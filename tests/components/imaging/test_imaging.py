import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, ValueRangeError
from stages.components.imaging.head import Box, head_box, prepare_pair, prepare_slice, widen
from stages.components.imaging.pixels import (
    DISPLAY_LEVEL,
    pad_to_square,
    read_image,
    resize,
    robust_rescale,
    save_png,
    to_float,
    to_rgb,
    to_uint8,
)


def draw_head(height, width, box, level=0):
    """An ellipse with a bright skull and a textured inside, on a background of one level."""
    rows, columns = np.mgrid[:height, :width]
    down = (rows - (box.top + box.bottom - 1) / 2) / ((box.bottom - box.top) / 2)
    across = (columns - (box.left + box.right - 1) / 2) / ((box.right - box.left) / 2)
    radius = np.hypot(down, across)
    image = np.full((height, width), level, np.uint8)
    image[radius <= 1] = 190
    inside = radius <= 0.88
    image[inside] = (90 + 30 * np.sin(rows / 7) + 20 * np.cos(columns / 5)).astype(np.uint8)[inside]
    return image


BOX = Box(40, 200, 60, 190)


def assert_close(found, expected, tolerance=4):
    assert np.abs(np.subtract(found, expected)).max() <= tolerance, (found, expected)


@pytest.mark.parametrize("level", [0, 12, 45])
def test_head_box_finds_the_head_on_any_background(level):
    assert_close(head_box(draw_head(240, 256, BOX, level)), BOX)


def test_head_box_ignores_noise_letters_and_white_borders():
    image = draw_head(240, 256, BOX)
    noise = np.random.default_rng(0).integers(0, 14, image.shape)
    image = np.maximum(image, noise).astype(np.uint8)
    image[8:18, 8:12] = 255  # a letter
    image[225:230, 20:120:6] = 255  # a ruler
    image[:6], image[:, -9:] = 255, 250  # a border
    assert_close(head_box(image), BOX)


def test_head_box_keeps_a_thin_skull_around_a_darker_brain():
    image = draw_head(240, 256, BOX)
    rows, columns = np.mgrid[:240, :256]
    radius = np.hypot((rows - 119.5) / 80, (columns - 124.5) / 65)
    image[(radius < 0.985) & (radius > 0.88)] = 0
    assert_close(head_box(image), BOX)


def test_head_box_reaches_the_edges_where_the_head_does():
    image = draw_head(240, 256, Box(-30, 260, -10, 256))
    assert head_box(image) == Box(0, 240, 0, 256)


def test_head_box_scales_with_the_picture():
    small = head_box(draw_head(120, 128, Box(20, 100, 30, 95)))
    large = head_box(draw_head(960, 1024, Box(160, 800, 240, 760)))
    assert_close(np.multiply(small, 8), large, tolerance=16)


@pytest.mark.parametrize("value", [0, 77])
def test_head_box_refuses_a_constant_image(value):
    with pytest.raises(DataError, match=f"64x48 px .values {value} to {value}"):
        head_box(np.full((48, 64), value, np.uint8))


def test_head_box_refuses_floats():
    with pytest.raises(ValueRangeError, match=r"head_box expects uint8.*float32"):
        head_box(np.zeros((48, 64), np.float32))


def test_crop_keeps_the_margin_inside_the_picture():
    box = widen(Box(10, 110, 5, 55), (112, 200), margin=0.1)
    assert box == Box(0, 112, 0, 65)


def test_prepare_slice_never_squashes():
    image = draw_head(300, 200, Box(20, 280, 60, 140))  # 260 high, 80 wide
    prepared = prepare_slice(image, 128, 0.0)
    assert prepared.shape == (128, 128) and prepared.dtype == np.uint8
    rows = np.flatnonzero((prepared > 60).any(1))
    columns = np.flatnonzero((prepared > 60).any(0))
    ratio = (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)
    assert ratio == pytest.approx(80 / 260, abs=0.03)
    assert prepared[:, :20].max() == 0  # padded with 0


def test_prepare_pair_keeps_image_and_mask_together():
    image = draw_head(240, 256, BOX)
    mask = np.zeros_like(image)
    mask[100:130, 90:120] = 3
    image[100:130, 90:120] = 255
    picture, labels = prepare_pair(image, mask, 96, 0.04)
    assert set(np.unique(labels)) == {0, 3}
    assert picture[labels == 3].mean() > 220
    assert np.array_equal(picture, prepare_slice(image, 96, 0.04))


def test_pad_to_square_centres():
    padded = pad_to_square(np.ones((2, 5), np.uint8))
    assert padded.shape == (5, 5) and padded.sum() == 10
    assert padded[1:3].all()


def test_resize_is_lanczos_with_antialiasing():
    image = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    expected = Image.fromarray(image).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(resize(image, 16), np.asarray(expected))
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.ptp(resize(stripes, 16)[4:-4, 4:-4]) <= 2  # not aliased


def test_resize_keeps_dtype_axes_and_constants():
    image = np.full((10, 14, 3), 201, np.uint8)
    resized = resize(image, (20, 7))
    assert resized.shape == (20, 7, 3) and resized.dtype == np.uint8
    assert np.unique(resized).tolist() == [201]
    same = resize(image, (10, 14))
    assert np.array_equal(same, image) and same is not image


def test_resize_refuses_what_it_cannot_keep():
    with pytest.raises(ValueRangeError, match=r"float64 \(4, 4\)"):
        resize(np.zeros((4, 4)), 2)


def test_range_conversions_are_inverse():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    floats = to_float(image)
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    assert np.array_equal(to_uint8(floats), image)
    assert to_rgb(image).shape == (16, 16, 3)


@pytest.mark.parametrize("value", [1.5, -2.0, np.nan])
def test_to_uint8_refuses_values_outside(value):
    with pytest.raises(ValueRangeError, match=f"{value:.2f}"):
        to_uint8(np.full((2, 2), value, np.float32))


def test_conversions_refuse_the_other_dtype():
    with pytest.raises(ValueRangeError, match="got uint8"):
        to_uint8(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueRangeError, match=r"to_float expects uint8.*float32"):
        to_float(np.zeros((2, 2), np.float32))


def test_robust_rescale_clips_the_tails_of_a_volume():
    volume = np.random.default_rng(2).normal(100, 10, (20, 20, 20)).astype(np.float32)
    volume[0, 0, 0] = 1e6
    scaled = robust_rescale(volume)
    level = DISPLAY_LEVEL
    assert scaled.dtype == np.uint8 and scaled.min() == 0 and scaled.max() == 255
    assert np.percentile(scaled, 99.5) == pytest.approx(level, abs=2)
    assert 0.4 * level < np.median(scaled) < 0.6 * level  # one hot voxel does not darken the rest


def test_robust_rescale_refuses_a_constant():
    with pytest.raises(DataError, match="about 7"):
        robust_rescale(np.full((4, 4, 4), 7.0, np.float32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_read_image_takes_every_mode(tmp_path, mode):
    head = Image.fromarray(draw_head(60, 70, Box(5, 55, 8, 60)))
    path = tmp_path / ("head.tif" if mode in ("CMYK", "YCbCr") else "head.png")
    head.convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == (60, 70)
    if mode != "1":
        assert np.abs(image.astype(int) - np.asarray(head)).max() <= 3


def test_read_image_lays_transparency_over_black(tmp_path):
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image[:, :4].max() == 0 and image[:, 4:].min() > 100


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_read_image_rescales_wide_pixels(tmp_path, dtype):
    values = (np.arange(64 * 64).reshape(64, 64) * 7).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    level = DISPLAY_LEVEL
    assert image.min() == 0 and image.max() == pytest.approx(level, abs=2)
    assert np.median(image) == pytest.approx(level / 2, abs=2)


def test_read_image_names_the_file_it_cannot_use(tmp_path):
    Image.fromarray(draw_head(60, 70, Box(5, 55, 8, 60))).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    nan = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(nan).save(tmp_path / "nan.tif")
    for name, reason in [
        ("cut.jpg", "cannot be decoded"),
        ("text.png", "cannot be decoded"),
        ("empty.jpg", "cannot be decoded"),
        ("nan.tif", "NaN"),
        ("absent.jpg", "does not exist"),
    ]:
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            read_image(tmp_path / name)


def test_save_png_is_deterministic_and_keeps_text(tmp_path):
    image = to_rgb(draw_head(60, 70, Box(5, 55, 8, 60)))
    save_png(tmp_path / "a.png", image, {"seed": "3", "prompt": "Tumor: ja, größer"})
    save_png(tmp_path / "b.png", image, {"prompt": "Tumor: ja, größer", "seed": "3"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), image)
        assert opened.info["prompt"] == "Tumor: ja, größer"
    with pytest.raises(ValueRangeError, match="save_png expects uint8"):
        save_png(tmp_path / "c.png", image.astype(np.float32))
