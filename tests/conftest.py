"""What every test stands on: no network, no credentials, caches in a folder of the test's own."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

# Before any library is imported: some read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from tests.fabricate import plugins

# A shell that is no terminal's starts what it puts into the background deaf to Ctrl-C, for good.
signal.signal(signal.SIGINT, signal.default_int_handler)

AddFile = Callable[..., Path]
SCRUBBED = ("HF_TOKEN", "GEMINI_API_KEY", "GOOGLE_API_KEY", "KAGGLE_ROOT", "MRISYNTH_DATA")


@pytest.fixture(autouse=True)
def _scrubbed_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Take away what a developer's own environment could lend a test."""
    for name in SCRUBBED:
        monkeypatch.delenv(name, raising=False)
    caches: Path = tmp_path_factory.getbasetemp() / "caches"
    for name in ("HF_HOME", "TORCH_HOME", "MPLCONFIGDIR", "NILEARN_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(caches / name.lower()))


@pytest.fixture
def add_file(tmp_path: Path) -> Iterator[AddFile]:
    """Give a function that puts a plug-in (package, name, text) beside the others, for this test.

    Without a text it is the part of that name in `tests/fabricate/parts`.
    """
    with ExitStack() as stack:
        yield lambda package, name, text=None: stack.enter_context(
            plugins.added(package, name, tmp_path / "added", text)
        )
