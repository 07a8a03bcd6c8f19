"""Loading the processor of a VLM for slices alone, with arguments from the settings.

Processors of models that see films or hear as well ask for parts that we never use, and for
torchvision with them. Those parts are left out.
"""

import importlib
import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import MissingWeightsError

NEEDED = ("image_processor", "tokenizer")
MODULES = {"smolvlm": "num2words"}  # what processors import beside, by model type


def missing_modules(model_type: str) -> list[str]:
    """Name what the processor of a model type needs and this machine lacks; loads no model."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    needed = [MODULES[model_type]] if model_type in MODULES else []
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {})
    if backends and "pil" not in backends:
        needed.append("torchvision")
    return [name for name in needed if importlib.util.find_spec(name) is None]


def load_processor(folder: Path, arguments: Mapping[str, Any]) -> Any:
    """Load tokenizer and image processor, and put them together.

    Args:
        folder: The checkpoint.
        arguments: Of the processor or its image processor, in place of the checkpoint's own.

    Raises:
        MissingWeightsError: Neither processor has one of the arguments; libraries would pass over.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    local = {"trust_remote_code": False, "local_files_only": True}
    kind = _processor_class(folder)
    beside = [] if kind is None else [n for n in kind.get_attributes() if n not in NEEDED]
    if kind is None or not beside:
        processor = AutoProcessor.from_pretrained(folder, **local, **arguments)
    else:
        stated, _ = kind.get_processor_dict(folder)
        known = inspect.signature(kind.__init__).parameters.keys() - set(kind.get_attributes())
        processor = _without_parts(kind)(
            image_processor=AutoImageProcessor.from_pretrained(folder, **local, **arguments),
            tokenizer=AutoTokenizer.from_pretrained(folder, **local),
            **dict.fromkeys(beside),
            **{name: value for name, value in {**stated, **arguments}.items() if name in known},
        )
    for name in arguments:
        if not any(hasattr(part, name) for part in (processor, processor.image_processor)):
            raise MissingWeightsError(
                f"caption.vlm.settings.processor: {type(processor).__name__} has no argument "
                f"{name!r}; take it out"
            )
    return processor


def _processor_class(folder: Path) -> Any:
    """Find the class of a checkpoint's processor by its model type; None if there is none."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = PROCESSOR_MAPPING_NAMES.get(config["model_type"])
    return None if name is None else getattr(importlib.import_module("transformers"), name)


def _without_parts(kind: Any) -> Any:
    """Return a processor class that takes None for a part; its own insists on every one."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
