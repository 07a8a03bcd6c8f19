from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import LABELS, SliceRecord
from tests.components.captioning.vlms.loopback import LoopbackServer
from tests.fabricate.vlms import shorten_descriptions, tiny

KEY = "test-key-6f1d0c9e"
KEY_VARIABLE = "MRISYNTH_TEST_API_KEY"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random checkpoint of each family that we have a file for."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("ovis2", "gemma3", "llava"):
        tiny(registry.find(registry.VLMS, name), folder)
    return folder


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_descriptions(monkeypatch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    running = LoopbackServer()
    yield running
    running.close()


@pytest.fixture
def slices(tmp_path: Path) -> list[SliceRecord]:
    return [
        SliceRecord(
            slice_id=f"patient-{index}",
            subject_id=f"patient-{index}",
            group_id=f"patient-{index}",
            source="image_folder",
            split="train",
            label=LABELS[index % 4],
            image_path=f"patient-{index}.png",
            original=f"patient-{index}.jpg",
            original_width_px=8,
            original_height_px=8,
        )
        for index in range(8)
    ]


@pytest.fixture
def paths(tmp_path: Path, slices: list[SliceRecord]) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, item in enumerate(slices):
        Image.new("RGB", (8, 8), (index, index, index)).save(folder / item.image_path)
    return [folder / item.image_path for item in slices]
