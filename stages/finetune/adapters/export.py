"""Export of what was trained: an adapter, or the new words of a textual inversion."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.files import write_whole
from stages.components.diffusion.adapters import ADAPTER_FILE, METADATA_KEY
from stages.components.diffusion.placeholder import EMBEDS_FILE, SDXL_KEYS, WORDS_METADATA_KEY
from stages.finetune.adapters.lora import ADAPTER, AdaptedModel
from stages.finetune.adapters.textual_inversion import InvertedEncoder


def result_file(models: Sequence[AdaptedModel]) -> str:
    """Name the file inside a checkpoint or the artifact."""
    return EMBEDS_FILE if isinstance(models[0], InvertedEncoder) else ADAPTER_FILE


def save_trained(models: Sequence[AdaptedModel], folder: Path) -> None:
    """Write what was trained, in the layout that plain diffusers loads."""
    words = [model for model in models if isinstance(model, InvertedEncoder)]
    if words:
        save_words(words, folder)
    else:
        save_adapter(models, folder)


def export_state(models: Sequence[AdaptedModel]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect the adapters under the names that diffusers reads, with peft's settings beside them.

    transformers >= 5.6 dropped the `text_model.` level from CLIPTextModel, but every reader of
    LoRA files expects it, diffusers on older transformers too; so it is written.
    """
    from peft.utils import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for model in models:
        inner = ""
        if model.prefix != "unet" and not hasattr(model.module, "text_model"):
            inner = "text_model."
        state = get_peft_model_state_dict(model.module, adapter_name=ADAPTER)
        for name, value in state.items():
            if model.prefix != "unet" and name.endswith("lora_magnitude_vector"):
                name += ".weight"  # transformers, which loads text encoders, leaves it out else
            tensors[f"{model.prefix}.{inner}{name}"] = value.detach().float().cpu().contiguous()
        for name, value in model.module.peft_config[ADAPTER].to_dict().items():
            if name != "base_model_name_or_path":  # a folder of this machine; the card names it
                settings[f"{model.prefix}.{name}"] = value
    return tensors, settings


def save_adapter(models: Sequence[AdaptedModel], folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`; the same adapter gives the same bytes."""
    from safetensors.torch import save_file

    tensors, settings = export_state(models)
    # Two sources of random order: peft keeps target names in a set, and safetensors writes several
    # metadata entries in any order. So the names are sorted, and there is one entry.
    metadata = json.dumps(settings, sort_keys=True, indent=2, default=as_json)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        folder / ADAPTER_FILE, lambda path: save_file(tensors, path, {METADATA_KEY: metadata})
    )


def as_json(value: object) -> object:
    """Turn what JSON does not know in peft's settings into what it does."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def save_words(models: Sequence[InvertedEncoder], folder: Path) -> None:
    """Write `learned_embeds.safetensors`; the same vectors give the same bytes."""
    from safetensors.torch import save_file

    word = models[0].placeholder.word
    keys = [word] if len(models) == 1 else SDXL_KEYS
    tensors = {
        key: model.learned.detach().float().cpu().contiguous()
        for key, model in zip(keys, models, strict=True)
    }
    metadata = {WORDS_METADATA_KEY: json.dumps({"placeholder": word})}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / EMBEDS_FILE, lambda path: save_file(tensors, path, metadata))
