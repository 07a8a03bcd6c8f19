"""The last grid that a training sampled, on the page."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from stages.components.imaging.pixels import save_png
from stages.report.sections import training


def artifact(root: Path, digest: str, *steps: int) -> Any:
    for step in steps:
        path = root / training.SAMPLES / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, np.full((1280, 640, 3), step, np.uint8))
    return SimpleNamespace(root=root, digest=digest)


def test_last_grid_of_every_training_is_shown_once_and_small(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(
        finetune={
            "first": artifact(tmp_path / "a", "1", 20, 100),
            "shares": artifact(tmp_path / "a", "1"),
            "without": artifact(tmp_path / "b", "2"),
        }
    )
    (found,) = training.read_sample_grids(run)
    assert found[:2] == ("first", 100)
    (chart,) = training.draw_training(run)
    assert chart.caption.startswith("Synthetic slices of first at optimiser step 100, from")
    assert (chart.picture.width, chart.picture.height) == (320, 640)
    content = base64.b64decode(chart.picture.source.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.info["synthetic"] == "true"
        assert opened.getextrema() == (100, 100)
