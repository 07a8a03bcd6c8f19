"""Processes are replaced by threads here; `test_generate` starts real ones."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.contracts import Context
from pipeline.errors import TrainingError
from stages.generate import shares

CONTEXT = Context("e", 0, "cpu", "float32", 5, Path("cache"), print)


def test_each_share_is_done_once() -> None:
    said: list[str] = []
    context = replace(CONTEXT, progress=said.append)
    found = shares.run_shares(lambda n, total, context: (n, total), 3, context, ThreadPoolExecutor)
    assert sorted(found) == [(0, 3), (1, 3), (2, 3)]
    assert said == ["1 of 3 shares", "2 of 3 shares", "3 of 3 shares"]


def test_one_share_stays_in_this_process_with_its_context() -> None:
    assert shares.run_shares(lambda *given: given, 1, CONTEXT) == [(0, 1, CONTEXT)]


def test_error_of_a_share_is_raised() -> None:
    def fail(shard: int, num_shards: int, context: Context) -> None:
        raise TrainingError(f"share {shard} of {num_shards}")

    with pytest.raises(TrainingError, match=r"share [01] of 2"):
        shares.run_shares(fail, 2, CONTEXT, ThreadPoolExecutor)


def test_share_gets_a_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares.shard_context(CONTEXT, 1, 2)
    assert (found.device, found.num_threads, found.seed) == ("cpu", 2, 0)
    assert shares.shard_context(CONTEXT, 8, 9).num_threads == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = replace(CONTEXT, device="cuda")
    devices = [shares.shard_context(gpu, n, 3).device for n in range(3)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    chosen = shares.shard_context(replace(gpu, device="cuda:1"), 0, 2)
    assert chosen.device == "cuda:1"
    assert chosen.progress("anything") is None
