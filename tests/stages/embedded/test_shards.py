"""Shards of phantoms that were made, lost or damaged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import write_arrays
from stages.embedded.corpora.shards import read_shard


@dataclass(frozen=True)
class Order:
    path: Path


def make(order: Order) -> None:
    write_arrays(order.path, images=np.arange(64))


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda content: content[: len(content) // 2], lambda c: b"x" * len(c)],
    ids=["empty", "half", "garbage"],
)
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    order = Order(tmp_path / "val-64-00000.npz")
    make(order)
    order.path.write_bytes(damage(order.path.read_bytes()))
    assert read_shard(order, make)["images"].tolist() == list(range(64))
    assert read_shard(order, make)["images"].tolist() == list(range(64))
    (said,) = caplog.messages
    assert said.startswith(f"{order.path}: a damaged entry of a cache")


def test_a_missing_shard_is_no_smaller_corpus(tmp_path: Path) -> None:
    assert read_shard(Order(tmp_path / "a.npz"), make)["images"].shape == (64,)
