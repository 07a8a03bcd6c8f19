"""Grid and charts: what is drawn, how it is marked, and that bytes repeat."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.contracts import Label
from stages.report import charts, pictures


def _cell(path, size, value):
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(path)
    return pictures.Cell(path, path.stem, "")


def test_pick_evenly_spans_the_sequence():
    assert pictures.pick_evenly("abcdefghi", 3) == ["a", "e", "i"]
    assert pictures.pick_evenly("ab", 3) == ["a", "b"]
    assert pictures.pick_evenly("abc", 1) == ["a"]
    assert pictures.pick_evenly("", 2) == []


def test_block_puts_classes_in_columns(tmp_path):
    cells: dict[Label, tuple[pictures.Cell, ...]] = {
        "glioma": (_cell(tmp_path / "a.png", 128, 200), _cell(tmp_path / "b.png", 256, 100)),
        "notumor": (_cell(tmp_path / "c.png", 64, 50),),
    }
    block = pictures.SliceBlock("arm", is_synthetic=True, columns=cells)
    assert block.labels == ("notumor", "glioma")
    pixels = np.asarray(pictures.draw_block(block))
    step = pictures.CELL_PX + pictures.GAP_PX
    below = step + pictures.WORDS_PX
    assert pixels.shape == (2 * below - pictures.GAP_PX, 2 * step - pictures.GAP_PX, 3)
    assert (pixels[64, step + 64] == 200).all()
    assert (pixels[below + 64, step + 64] == 100).all()  # taken down from 256 px
    assert (pixels[64, 64] == 50).all()
    assert (pixels[5, 5] == 255).all()  # a small image is centred, not enlarged


def test_a_cell_has_its_words_its_sides_and_its_outline(tmp_path):
    patch = np.zeros((32, 32), np.bool_)
    patch[8:16, 8:16] = True
    plain = _cell(tmp_path / "a.png", 128, 90)
    marked = replace(plain, words="T2, axial", has_sides=True, patch=patch)

    def draw(cell):
        block = pictures.SliceBlock("arm", is_synthetic=True, columns={"glioma": (cell,)})
        return np.asarray(pictures.draw_block(block)).astype(int)

    changed = (draw(plain) != draw(marked)).any(axis=-1)
    assert tuple(draw(marked)[32, 40]) == pictures.OUTLINE  # 8 of 32 px are 32 of 128
    assert (draw(marked)[48, 48] == 90).all()  # inside the outline
    assert changed[:16, :16].any() and changed[:16, 112:].any()  # the words left and right
    assert changed[128:].any()  # words
    assert changed[70:128].sum() == 0


def test_grid_of_nothing_and_of_many(tmp_path):
    empty = pictures.draw_grid([])
    columns: dict[Label, tuple[pictures.Cell, ...]] = {
        "glioma": (_cell(tmp_path / "a.png", 128, 200),)
    }
    block = pictures.SliceBlock("arm", is_synthetic=True, columns=columns)
    one, four = pictures.draw_grid([block]), pictures.draw_grid([block] * 4)
    assert empty.width > 0
    assert (four.width > 2 * one.width, four.height > 1.5 * one.height) == (True, True)


@pytest.mark.parametrize("is_synthetic", [True, False])
def test_png_is_marked_and_grey(tmp_path, is_synthetic):
    image = Image.new("RGB", (4, 4), (9, 9, 9))
    path = tmp_path / "image.png"
    path.write_bytes(pictures.encode_png(image, is_synthetic=is_synthetic))
    with Image.open(path) as read:
        assert read.mode == "L"
        assert read.info.get("synthetic") == ("true" if is_synthetic else None)


def test_colour_is_kept(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(pictures.encode_png(Image.new("RGB", (4, 4), (9, 8, 7)), is_synthetic=False))
    with Image.open(path) as read:
        assert read.mode == "RGB"


BARS = [charts.Bar("arm-a", "arm", 0.2, 0.15, 0.25), charts.Bar("base/x", "base", 0.3, None, None)]


def _draw():
    return charts.draw_scores(BARS, floor=(-0.001, "floor"), xlabel="KID")


def test_score_chart_repeats_to_the_byte():
    first, second = _draw(), _draw()
    assert charts.to_svg(first) == charts.to_svg(second)
    assert charts.to_png(first) == charts.to_png(second)
    assert b"<dc:date>" not in charts.to_svg(first)


def test_the_axis_ends_with_the_rows():
    axes = _draw().axes[0]
    low, high = axes.get_xlim()
    assert -0.03 < low < -0.001
    assert 0.3 < high < 0.33
    assert [label.get_text() for label in axes.get_yticklabels()] == ["arm-a", "base/x"]


def test_curves_show_every_arm():
    curves = [charts.ChartLine(f"arm-{i}", ((0, 1.0), (10, 0.5))) for i in range(8)]
    axes = charts.draw_curves(curves, ylabel="loss").axes[0]
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(styles) == 8
