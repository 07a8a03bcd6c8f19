import shutil
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline.contracts import PluginConfig
from pipeline.run import checks
from pipeline.run.plan import plan
from pipeline.settings import EvaluateConfig, RunConfig

Load = Callable[..., RunConfig]
Usage = namedtuple("Usage", "total used free")


def append(path: Path, text: str) -> None:
    """Let a fake part say more, before it is imported."""
    with path.open("a") as out:
        out.write(textwrap.dedent(text))


def problems(settings: RunConfig, data_dir: Path) -> list[str]:
    return checks.problems(plan(settings), settings, data_dir)


def test_nothing_is_in_the_way(load: Load, tmp_path: Path) -> None:
    assert problems(load(), tmp_path / "data") == []


def test_plugins_speak_for_themselves_once_each(load: Load, tmp_path: Path) -> None:
    settings = load("preprocess.source.settings.root=gone")
    assert problems(settings, tmp_path) == ["sources/folder: no folder 'gone'; put the data there"]


def test_plugin_that_raises_is_reported_like_the_rest(
    load: Load, tmp_path: Path, parts: Path
) -> None:
    append(
        parts / "sources/folder.py",
        """
        from pipeline.errors import DataError

        def check(settings):
            raise DataError("captions.jsonl line 3: no 'text'")
        """,
    )
    assert problems(load(), tmp_path) == ["sources/folder: captions.jsonl line 3: no 'text'"]


def test_slices_that_may_not_leave_the_machine(load: Load, tmp_path: Path, parts: Path) -> None:
    append(
        parts / "vlms/truth.py",
        """
        class Settings(Section):
            host: str | None = "api.example.org"

        def uploads_to(settings):
            return settings.host
        """,
    )
    assert problems(load(), tmp_path) == [
        "vlms/truth: would send slices of the source 'folder' to api.example.org; if they may "
        "leave this machine, set caption.sources.folder.allow_upload: true, else choose a local VLM"
    ]
    assert problems(load("caption.sources.folder.allow_upload=true"), tmp_path) == []
    assert problems(load("caption.vlm.settings.host=null"), tmp_path) == []


def test_too_few_images_for_a_metric(load: Load, tmp_path: Path, parts: Path) -> None:
    append(parts / "metrics/fid.py", "SPEC = SimpleNamespace(least_n=100)")
    assert problems(load("evaluate.max_images=50"), tmp_path) == [
        "evaluate.max_images is 50, but fid needs at least 100 images; raise it",
        "generate.num_images is 8, but fid needs at least 100 images; raise it",
    ]


def test_gpu_that_is_not_there(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False, device_count=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0"))
    (line,) = problems(load("device=cuda"), tmp_path)
    assert line.startswith("device is 'cuda', but torch 2.13.0 sees no GPU; set device: cpu")
    cuda.is_available = lambda: True
    assert problems(load("device=cuda"), tmp_path) == []
    assert problems(load("device=cuda:1"), tmp_path) == ["device is 'cuda:1', but there are 1 GPUs"]


def test_full_disk(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**30))
    (line,) = problems(load(), tmp_path / "data" / "deep")
    assert line.startswith(f"{tmp_path} has 1.0 GiB free, and at least 2.0 GiB are needed")


def test_folder_that_cannot_be_written_to(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (line,) = problems(load(), tmp_path)
    assert line == f"{tmp_path} cannot be written to; give another folder with --data-dir"


def test_too_little_memory(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    (line,) = problems(load(), tmp_path)
    assert line.startswith("1.0 GiB of memory are available, and at least 3 GiB are needed")


def test_a_network_may_be_missing_beside_one_that_is_ready() -> None:
    gone = PluginConfig(name="vgg16", settings={"weights": "gone.pth"})
    ready = PluginConfig(name="efficientnet_lite0")

    def found(*features: PluginConfig) -> list[str]:
        node = SimpleNamespace(stage="evaluate", config=EvaluateConfig(features=features))
        return list(checks._plugin_problems([node]))  # type: ignore[list-item]

    assert found(ready, gone) == []
    (line,) = found(gone)
    assert line.startswith("extractors/vgg16: no weights at ")
    assert "gone.pth'" in line
    assert len(found(gone, PluginConfig(name="dinov2", settings={"model": "./gone"}))) == 2
