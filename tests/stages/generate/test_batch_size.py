from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError
from stages.generate import batch_size
from stages.generate.batch_size import BatchSize


class Starved:
    """A sampler with memory for `most` images, which counts what it is asked for."""

    device = torch.device("cpu")
    image_size = 512
    guidance = None

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most, self.error = most, error
        self.asked: list[int] = []
        config = SimpleNamespace(block_out_channels=(128, 256))
        self.pipeline = SimpleNamespace(vae=SimpleNamespace(config=config))

    def draw(self, prompts: Any, seeds: Any, reports: Any) -> Any:
        self.asked.append(len(prompts))
        if len(prompts) > self.most:
            raise self.error("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return np.array(seeds, np.uint8).reshape(-1, 1, 1, 1), [None] * len(seeds)


def test_images_keep_their_order_while_the_size_shrinks() -> None:
    said: list[str] = []
    sampler, size = Starved(3, RuntimeError), BatchSize(64, True, said.append)
    images, faults = batch_size.draw(sampler, ["p"] * 10, list(range(10)), size)
    assert images.ravel().tolist() == list(range(10))
    assert faults == [None] * 10
    assert sampler.asked == [10, 5, 2, 2, 2, 2, 2]
    assert size.size == 2
    assert said[0] == "generate: 10 images at once do not fit; going on with 5"


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"one image \(MemoryError.*image_size"):
        batch_size.draw(Starved(0, MemoryError), ["p"], [1], BatchSize(8, True, print))


def test_size_asked_for_is_not_changed_silently() -> None:
    with pytest.raises(TrainingError, match="batch_size 2"):
        batch_size.draw(Starved(1), ["p"] * 4, [1, 2, 3, 4], BatchSize(2, False, print))


def test_other_errors_stay_what_they_are() -> None:
    sampler = Starved(0)

    def fail(prompts: Any, seeds: Any, reports: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    sampler.draw = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes cannot"):
        batch_size.draw(sampler, ["p"], [1], BatchSize(4, True, print))


def test_first_size_comes_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    memory = SimpleNamespace(available=20 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    size = batch_size.build_batch_size("auto", Starved(9), said.append)
    assert (size.size, size.is_auto) == (8, True)  # 1 GiB an image, half of 20 GiB
    assert said == ["generate: batch size 8, by the 20.0 GiB that are free"]
    sampler = Starved(9)
    sampler.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 2**30, 80 * 2**30))
    assert batch_size.build_batch_size("auto", sampler, said.append).size == 1
    assert batch_size.build_batch_size(16, sampler, said.append).size == 16


def test_gradients_of_guidance_count_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=100 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    sampler: Any = Starved(99)
    assert batch_size.build_batch_size("auto", sampler, print).size == 32
    sampler.guidance = object()
    assert batch_size.build_batch_size("auto", sampler, print).size == 4  # 12 GiB an image
