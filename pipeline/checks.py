"""Find what would fail, before the first expensive step; list all of it, each with its remedy."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from pipeline import registry
from pipeline.errors import PipelineError
from pipeline.plan import Node
from pipeline.settings import EvaluateConfig, GenerateConfig, RunConfig

SPARE_BYTES = 2 * 2**30  # beside what is computed below: records, adapters, caches of a small run
LEAST_MEMORY_BYTES = 3 * 2**30  # importing torch, diffusers and transformers alone takes about 1


def problems(nodes: Sequence[Node], settings: RunConfig, data_dir: Path) -> list[str]:
    """List what stands in the way of these nodes; empty if nothing is known to.

    Plug-ins may expose `check(settings) -> list[str]`, which looks for their files, weights,
    libraries and keys, and says what to do about each that is missing.
    """
    found = [
        *_plugin_problems(nodes),
        *_sample_size_problems(nodes),
        *_device_problems(settings.device),
        *_disk_problems(nodes, data_dir),
        *_memory_problems(),
    ]
    return list(dict.fromkeys(found))


def _plugin_problems(nodes: Sequence[Node]) -> Iterator[str]:
    asked: set[str] = set()
    for node in nodes:
        for package, plugin in registry.plugins_of(node.stage, node.config):
            key = f"{package}.{plugin.name} {sorted(plugin.settings.items())}"
            module = registry.find(package, plugin.name)
            if key in asked or not hasattr(module, "check"):
                continue
            asked.add(key)
            name = f"{package.rpartition('.')[2]}/{plugin.name}"
            try:
                yield from (
                    f"{name}: {line}"
                    for line in module.check(module.Settings.model_validate(plugin.settings))
                )
            except PipelineError as error:
                yield f"{name}: {error}"


def _sample_size_problems(nodes: Sequence[Node]) -> Iterator[str]:
    """Compare what a metric needs with what will be there, per class too."""
    for node in nodes:
        if not isinstance(node.config, EvaluateConfig):
            continue
        for name in node.config.metrics:
            least = registry.find(registry.METRICS, name).SPEC.least_n
            if node.config.max_images < least:
                yield (
                    f"evaluate.max_images is {node.config.max_images}, but {name} needs at least "
                    f"{least} images; raise it"
                )
            for source in node.upstream():
                config = source.config
                if isinstance(config, GenerateConfig) and config.num_images < least:
                    yield (
                        f"generate.num_images is {config.num_images}, but {name} needs at least "
                        f"{least} images; raise it"
                    )


def _device_problems(device: str) -> Iterator[str]:
    if device == "cpu":
        return
    import torch  # only where a GPU is asked for

    if not torch.cuda.is_available():
        yield (
            f"device is {device!r}, but torch {torch.__version__} sees no GPU; set device: cpu, "
            "or install a CUDA build of torch"
        )
    elif device != "cuda" and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        yield f"device is {device!r}, but there are {torch.cuda.device_count()} GPUs"


def _disk_problems(nodes: Sequence[Node], data_dir: Path) -> Iterator[str]:
    """Compare free space with the images to be made, uncompressed, and a margin."""
    existing = next(path for path in [data_dir, *data_dir.resolve().parents] if path.is_dir())
    if not os.access(existing, os.W_OK):
        yield f"{existing} cannot be written to; give another folder with --data-dir"
        return
    needed = SPARE_BYTES + sum(
        node.config.num_images * 3 * node.config.image_size**2
        for node in nodes
        if isinstance(node.config, GenerateConfig)
    )
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield (
            f"{existing} has {free / 2**30:.1f} GiB free, and at least {needed / 2**30:.1f} GiB "
            "are needed; free some, or give another folder with --data-dir"
        )


def _memory_problems() -> Iterator[str]:
    available = psutil.virtual_memory().available
    if available < LEAST_MEMORY_BYTES:
        yield (
            f"{available / 2**30:.1f} GiB of memory are available, and at least "
            f"{LEAST_MEMORY_BYTES / 2**30:.0f} GiB are needed; close other programs"
        )
