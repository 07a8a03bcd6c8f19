"""One unbroken run, which every broken one is compared with."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fabricate.chain import write_chain
from tests.faults.commands import Moment, Workshop, fork


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing happened to."""

    config: Path
    data_dir: Path
    digests: dict[str, dict[str, Any]]
    moments: list[Moment]


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Run the chain with worker processes, once for all tests."""
    folder = tmp_path_factory.mktemp("unbroken")
    writer = fork(write_chain, folder, ["tiny_sd15"])
    writer.join()
    workshop = Workshop(folder / "chain.yaml", folder / "data")
    made = workshop.finish()
    return Unbroken(workshop.config, workshop.data_dir, workshop.digests(), made.moments())


@pytest.fixture
def workshop(unbroken: Unbroken, tmp_path: Path) -> Workshop:
    """The same experiment in a data folder of the test's own."""
    return Workshop(unbroken.config, tmp_path / "data")


@pytest.fixture
def warm(unbroken: Unbroken, workshop: Workshop) -> Workshop:
    """The same with caches that are filled."""
    shutil.copytree(unbroken.data_dir / "cache", workshop.data_dir / "cache")
    return workshop
