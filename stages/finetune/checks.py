"""Checks of what would keep fine-tuning from running, before anything loads; imports no torch."""

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components.features.extractors import efficientnet_lite0
from stages.finetune.adapters.targets import is_adapted, text_targets, unet_targets
from stages.finetune.memory import GIB, MemoryEstimate, Shapes, estimate, layers

# Optimiser or tracker: the module it needs, and where that comes from.
LIBRARIES = {
    "adamw_8bit": ("bitsandbytes", "pip install bitsandbytes"),
    "prodigy": ("prodigyopt", "pip install 'mrisynth[optimizers]'"),
    "schedule_free": ("schedulefree", "pip install 'mrisynth[optimizers]'"),
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "pip install 'mrisynth[track]'"),
}
TOKEN_VARIABLE = "HF_TOKEN"
REMEDY = (
    "turn on finetune.gradient_checkpointing, lower finetune.batch_size and raise "
    "finetune.gradient_accumulation_steps by as much, or set finetune.quantize_base"
)


def missing_library(name: str) -> str | None:
    """Say what an optimiser or tracker lacks, with the remedy; None if nothing."""
    if name not in LIBRARIES:
        return None
    module, command = LIBRARIES[name]
    if importlib.util.find_spec(module) is not None:
        return None
    return f"finetune: {name!r} needs the package {module}, which is not installed: {command}"


def require_libraries(config: FinetuneConfig) -> None:
    """Refuse an optimiser or tracker that cannot run.

    Raises:
        TrainingError: A package is missing.
    """
    for problem in filter(None, map(missing_library, (config.optimizer, *config.trackers))):
        raise TrainingError(problem)


def tracker_problem(config: FinetuneConfig) -> str | None:
    """Say that W&B has no key, for which it would ask at the terminal; None if it needs none."""
    keys = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    is_offline = os.environ.get("WANDB_MODE") in {"offline", "disabled", "dryrun"}
    if "wandb" not in config.trackers or is_offline or any(map(os.environ.get, keys)):
        return None
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        if netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host or ""):
            return None
    except (OSError, NetrcParseError):
        pass  # no key there
    return (
        f"finetune.trackers: W&B has no key for {host}; run `wandb login`, export WANDB_API_KEY or "
        "WANDB_MODE=offline, or leave wandb out"
    )


def push_problem(config: FinetuneConfig) -> str | None:
    """Say what keeps the artifact from being sent; None if nothing does, or nothing is asked."""
    if config.push_to_hub is None:
        return None
    request = f"finetune.push_to_hub is {config.push_to_hub!r}, but"
    if not config.allow_upload:
        return (
            f"{request} what was learnt from slices, and captions of them, may not leave this "
            "machine; if they may, set finetune.allow_upload: true, else leave push_to_hub out"
        )
    if not os.environ.get(TOKEN_VARIABLE):
        return (
            f"{request} the environment variable {TOKEN_VARIABLE!r} is not set or empty; export a "
            "token that may write to it, or leave push_to_hub out"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return f"{request} HF_HUB_OFFLINE is set; unset it, or leave push_to_hub out"
    return None


def places(
    config: FinetuneConfig, networks: Mapping[str, Shapes]
) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Return what gets adapters: part to layer names, and part to rank."""
    if config.is_inversion:  # its activations are those of text encoders that are trained
        encoders = [part for part in networks if part.startswith("text_encoder")]
        return dict.fromkeys(encoders, ()), dict.fromkeys(encoders, 0)
    targets = {"unet": unet_targets(config)}
    ranks = {"unet": config.lora_rank}
    if config.train_text_encoder:
        for part in networks:
            if part.startswith("text_encoder"):
                targets[part] = text_targets(config)
                ranks[part] = config.text_encoder_rank or config.lora_rank
    return targets, ranks


def predict_memory(
    config: FinetuneConfig, networks: Mapping[str, Shapes], dtype: str
) -> MemoryEstimate:
    """Estimate the memory that one process of this training takes at its peak."""
    return estimate(networks, config, *places(config, networks), dtype)


def problems(
    config: FinetuneConfig,
    networks: Mapping[str, Shapes],
    dtype: str,
    available: int,
) -> Iterator[str]:
    """List what stands in the way: libraries, tokens, weights, ranks, memory; with its remedy.

    Args:
        config: The stage's section.
        networks: Part to the shapes of its tensors.
        dtype: Compute dtype.
        available: Free bytes of the device.
    """
    for name in (
        config.optimizer,
        *config.trackers,
        *(["adamw_8bit"] if config.quantize_base else []),
    ):
        line = missing_library(name)
        if line is not None:
            yield line
    yield from filter(None, (tracker_problem(config), push_problem(config)))
    if config.grounding_weight > 0 and config.compile_blocks:
        yield (
            "finetune: grounding_weight reads the attention that compile_blocks fuses; turn one of "
            "them off"
        )
    if config.kid_selects:
        for line in efficientnet_lite0.check(efficientnet_lite0.Settings()):
            yield f"finetune.select_by kid: {line}"
    targets, ranks = places(config, networks)
    for part, names in targets.items():
        limits = {
            layer: min(shape[0], math.prod(shape[1:]))
            for layer, shape in layers(networks[part]).items()
            if is_adapted(layer, names)
        }
        if limits and ranks[part] > min(limits.values()):
            narrowest = min(limits, key=lambda layer: limits[layer])
            yield (
                f"finetune: rank {ranks[part]} of {part} is larger than its layer {narrowest!r}, "
                f"which can use at most {limits[narrowest]}; lower it"
            )
    needed = predict_memory(config, networks, dtype)
    if needed.total > available:
        yield (
            f"finetune needs {needed.describe()}, and {available / GIB:.1f} GiB are free; {REMEDY}"
        )
