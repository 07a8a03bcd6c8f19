"""The grid of images: what is written under a cell, and what the judge marked in it."""

import dataclasses

import numpy as np
import pytest

from stages.report.artifacts import drop_twins
from stages.report.sections.images import describe_grid, read_blocks, share_prompts
from tests.stages.report.parts import Fabricator
from tests.stages.report.test_location import score


@pytest.fixture
def inputs(tmp_path):
    made = Fabricator(tmp_path).inputs()
    patch = np.zeros((1, 8, 8), np.bool_)
    patch[0, 2:4, 2:4] = True
    path = made.evaluate.root / "patches" / "real.npz"
    path.parent.mkdir()
    np.savez_compressed(path, allow_pickle=False, names=np.array(["test-glioma-0"]), patches=patch)
    notes = {"location": {"patches": {"real": "patches/real.npz"}}}
    evaluate = dataclasses.replace(
        made.evaluate, manifest={**made.evaluate.manifest, "notes": notes}
    )
    return dataclasses.replace(made, evaluate=evaluate)


def test_cells_carry_contrast_plane_and_the_judges_patch(inputs):
    blocks = read_blocks(inputs, 2)
    assert blocks[0].name == "reference phantoms"
    assert [block.name for block in blocks][-1] == "tiny_sdxl, no LoRA"
    first, second = blocks[0].columns["glioma"]
    assert first.patch is not None and first.patch.sum() == 4
    assert second.patch is None
    assert (first.words, first.has_sides) == ("T2, axial", True)
    assert (second.words, second.has_sides) == ("", False)  # the source does not say
    image = blocks[1].columns["glioma"][0]
    assert (image.words, image.has_sides) == ("FLAIR, sagittal", False)
    assert share_prompts([]) == ()


def test_the_convention_of_sides_comes_from_the_source(inputs):
    words = describe_grid(inputs)
    assert "the patient's right is on the image's left" in words
    assert "the judge's outline" in words


def test_equal_rows_of_a_shared_vae_are_shown_once():
    rows = [score("vae/a", "side", 0.9), score("vae/b", "side", 0.9), score("c", "side", 0.9)]
    kept, words = drop_twins([*rows, score("vae/d", "side", 0.8)])
    assert [row.arm for row in kept] == ["vae/a", "c", "vae/d"]
    assert words == ("vae/b has the VAE of vae/a, and every score of it; its rows are left out",)
