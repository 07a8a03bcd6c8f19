"""The file that a training results in: an adapter, or the new words of a textual inversion."""

from collections.abc import Sequence
from pathlib import Path

from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.placeholder import EMBEDS_FILE
from stages.components.lora import AdaptedModel, save_adapter
from stages.components.textual_inversion import InvertedEncoder, save_words


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
