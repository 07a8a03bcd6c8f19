"""Checks before the first expensive step: all that would fail, each with its remedy."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from pipeline import registry
from pipeline.errors import PipelineError
from pipeline.run.plan import Node
from pipeline.settings import (
    CaptionConfig,
    ClassifyConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    PreprocessConfig,
    RunConfig,
)

SPARE_BYTES = 2 * 2**30  # beside what is computed below: records, adapters, caches of a small run
LEAST_MEMORY_BYTES = 3 * 2**30  # importing torch, diffusers and transformers alone takes about 1


class Need(Protocol):
    """An estimate of memory."""

    @property
    def total(self) -> int:
        """Bytes."""
        ...

    def describe(self) -> str:
        """Say it in one line."""
        ...


Networks = Mapping[str, Mapping[str, tuple[int, ...]]]  # part to tensor name to shape


def problems(nodes: Sequence[Node], settings: RunConfig, data_dir: Path) -> list[str]:
    """List what stands in the way of these nodes; empty if nothing is known to.

    Plug-ins may expose `check(settings) -> list[str]`, which looks for their files, weights,
    libraries and keys, and says what to do about each that is missing.
    """
    lines = [
        *_plugin_problems(nodes),
        *_upload_problems(nodes),
        *_protected_problems(nodes),
        *_sample_size_problems(nodes),
        *_device_problems(settings.device),
        *_disk_problems(nodes, data_dir),
        *_memory_problems(),
        *_training_problems(nodes, settings),
        *_captioner_problems(nodes, settings),
    ]
    return list(dict.fromkeys(lines))


def _plugin_problems(nodes: Sequence[Node]) -> Iterator[str]:
    checked: set[str] = set()
    for node in nodes:
        for package, plugin in registry.plugins_of(node.stage, node.config):
            key = f"{package}.{plugin.name} {sorted(plugin.settings.items())}"
            module = registry.find(package, plugin.name)
            if key in checked or not hasattr(module, "check"):
                continue
            checked.add(key)
            name = f"{package.rpartition('.')[2]}/{plugin.name}"
            if package == registry.FEATURES and _has_features_beside(node, plugin.name):
                continue  # evaluate names it as missing and goes on with the others
            try:
                yield from (
                    f"{name}: {line}"
                    for line in module.check(module.Settings.model_validate(plugin.settings))
                )
            except PipelineError as error:
                yield f"{name}: {error}"


def _has_features_beside(node: Node, name: str) -> bool:
    """Tell whether another feature extractor of a node is ready."""
    for package, plugin in registry.plugins_of(node.stage, node.config):
        if package == registry.FEATURES and plugin.name != name:
            module = registry.find(package, plugin.name)
            settings = module.Settings.model_validate(plugin.settings)
            if not hasattr(module, "check") or not module.check(settings):
                return True
    return False


def _upload_problems(nodes: Sequence[Node]) -> Iterator[str]:
    """Find captioners that would send away slices of a source that may not leave this machine.

    A plug-in that sends images exposes `uploads_to(settings) -> str | None`, the host they go to.
    """
    for node in nodes:
        if not isinstance(node.config, CaptionConfig):
            continue
        sources = [
            source.config.source.name
            for source in node.upstream()
            if isinstance(source.config, PreprocessConfig)
        ]
        for package, plugin in registry.plugins_of(node.stage, node.config):
            module = registry.find(package, plugin.name)
            if not hasattr(module, "uploads_to"):
                continue
            host = module.uploads_to(module.Settings.model_validate(plugin.settings))
            problems = [node.config.upload_problem(name, host) for name in sources]
            yield from (f"vlms/{plugin.name}: {line}" for line in problems if line)


def _protected_problems(nodes: Sequence[Node]) -> Iterator[str]:
    """Find tables of a protected attribute that are absent or are not the ones that were named."""
    for node in nodes:
        if not isinstance(node.config, ClassifyConfig) or node.config.protected is None:
            continue
        path = Path(node.config.protected.table).expanduser()
        if not path.is_file():
            yield f"classify.protected.table: no file {str(path)!r}; put the table there"
            continue
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != node.config.protected.sha256:
            yield (
                f"classify.protected.sha256: {path} has {sha256}; write it there if this is the "
                "table that you mean"
            )


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
        (node.config.num_images + node.config.counterfactuals) * 3 * node.config.image_size**2
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


def predictions(nodes: Sequence[Node], settings: RunConfig) -> list[str]:
    """Say how much memory trainings and local captioners will take, where weights are there."""
    from stages.finetune import checks

    return [
        f"{node.title}: memory {checks.predict_memory(config, networks, settings.dtype).describe()}"
        for node, config, networks in _trainings(nodes)
    ] + [
        f"{node.title}: memory {estimate.describe()}"
        for node, _, estimate in _captioners(nodes, settings)
    ]


def _captioners(
    nodes: Sequence[Node], settings: RunConfig
) -> Iterator[tuple[Node, str | dict[str, int | str], Need]]:
    """Yield each node with a captioner on this machine, where that goes, and what it takes.

    Captioners may expose `predict_memory(settings) -> Need | None`, from headers alone.
    """
    for node in nodes:
        for package, plugin in registry.plugins_of(node.stage, node.config):
            module = registry.find(package, plugin.name)
            if package != registry.VLMS or not hasattr(module, "predict_memory"):
                continue
            chosen = module.Settings.model_validate(plugin.settings)
            chosen = module.for_run(chosen, device=settings.device, dtype=settings.dtype)
            estimate = module.predict_memory(chosen)
            if estimate is not None:
                yield node, chosen.device_map, estimate


def _captioner_problems(nodes: Sequence[Node], settings: RunConfig) -> Iterator[str]:
    for node, place, estimate in _captioners(nodes, settings):
        if not isinstance(place, str):
            continue  # laid out by hand
        free = _free_on_all(settings.device) if place == "auto" else _free_bytes(place)
        if estimate.total > free:
            yield (
                f"{node.title}: the captioner needs {estimate.describe()}, and "
                f"{free / 2**30:.1f} GiB are free on {place}; set caption.vlm.settings.dtype: "
                "bfloat16, quantization: 4bit or a smaller batch_size, or take a smaller model"
            )


def _trainings(nodes: Sequence[Node]) -> Iterator[tuple[Node, FinetuneConfig, Networks]]:
    """Yield each training of a base model whose weights are there, with their shapes.

    Base models may expose `read_networks(settings)`: part ("unet", "vae", "text_encoder", ...) to
    tensor name to shape, from the headers alone; empty while weights are missing.
    """
    for node in nodes:
        if isinstance(node.config, FinetuneConfig) and node.config.base_model is not None:
            plugin = node.config.base_model
            module = registry.find(registry.BASE_MODELS, plugin.name)
            if hasattr(module, "read_networks"):
                networks = module.read_networks(module.Settings.model_validate(plugin.settings))
                if networks:
                    yield node, node.config, networks


def _training_problems(nodes: Sequence[Node], settings: RunConfig) -> Iterator[str]:
    from stages.finetune import checks

    for node, config, networks in _trainings(nodes):
        lines = checks.problems(config, networks, settings.dtype, _free_bytes(settings.device))
        yield from (f"{node.title}: {line}" for line in lines)


def _free_on_all(device: str) -> int:
    """Return the free memory of all devices of a kind, for what is spread over them."""
    if device == "cpu":
        return _free_bytes(device)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sum(_free_bytes(f"cuda:{index}") for index in range(count)) or sys.maxsize


def _free_bytes(device: str) -> int:
    """Return the free memory of a device; without limit for a GPU that is not there."""
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    import torch

    if not torch.cuda.is_available():
        return sys.maxsize  # `_device_problems` has said so
    return int(torch.cuda.mem_get_info(device)[0])
