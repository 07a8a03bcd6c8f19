"""The score of a base model: its prompts, and numbers that tell samples from reconstructions."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import Modality, Orientation
from stages.embedded.corpora.heads import HeadCorpus
from stages.embedded.scores import base_scores

EMBEDDED = Path(__file__).parents[3] / "data" / "embedded"


@pytest.mark.slow
def test_only_tumour_free_slices_are_asked_for_and_the_vae_comes_nearer() -> None:
    count = 8
    grid = np.linspace(-1, 1, 128)
    radius = np.hypot(*np.meshgrid(grid, grid))
    heads = np.stack([np.where(radius < 0.6 + 0.03 * n, 120, 0) for n in range(count)])
    corpus = HeadCorpus(
        images=heads.astype(np.uint8),
        fine=heads.astype(np.uint8),
        label=np.array([0, 1] * 4, np.int8),
        orientation=np.array([0, 0, 1, 1, 2, 2, 0, 0], np.int8),
        modality=np.zeros(count, np.int8),
        subject=np.arange(count, dtype=np.int32),
    )
    asked: list[tuple[Modality, Orientation]] = []

    def prompt_for(modality: Modality, plane: Orientation) -> str:
        asked.append((modality, plane))
        return f"{plane} brain MRI"

    kinds = {"small": np.arange(count) < 4, "large": np.arange(count) >= 4}
    scores = base_scores(EMBEDDED / "tiny_sd15", corpus, prompt_for, kinds=kinds)
    assert asked == [("t1", plane) for plane in ("axial", "coronal", "sagittal", "axial")]
    assert scores["n"] == 4
    assert scores["vae_kid"] < scores["kid"]
    assert scores["kid_small"] != scores["kid_large"]
