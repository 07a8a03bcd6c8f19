"""Captioners that cost nothing: checkpoints with random weights, servers that nobody runs."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.embedded.vlm_models import (
    Family,
    Size,
    build_model,
    build_processor,
    build_tokenizer,
    save,
)

RANDOM = Size(32, 8, 16, 32, 1, 32, 1, 2, 16)  # four image tokens, 0.1 M parameters
FAMILIES: dict[str, Family] = {"ovis2": "ovis2", "gemma3": "gemma3", "llava": "llava"}
NOBODY = "http://127.0.0.1:9"  # the port of the discard service


def write_random(folder: Path, family: Family, size: Size = RANDOM) -> None:
    """Write a checkpoint with random weights, the same ones every time."""
    import torch

    tokenizer = build_tokenizer(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build_model(family, size, tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:  # so wide that what it says depends on what it sees
                    parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    save(folder, model, build_processor(family, size, tokenizer))


def tiny(plugin: ModuleType, tmp: Path) -> Any:
    """Return settings of any captioner file with which it loads here and now, without a network.

    A local one gets a random checkpoint (32 px) of the first of its `model_types` that this file
    knows, below `tmp`; a remote one a server on this machine and no key; any other one that reads
    a file an empty one.
    """
    if hasattr(plugin, "PLUGIN"):
        types = plugin.PLUGIN.model_types or FAMILIES  # none named: it takes any
        known = [kind for kind in types if kind in FAMILIES]
        assert known, f"{plugin.PLUGIN.model_types}: write_random knows {sorted(FAMILIES)} only"
        folder = tmp / f"random_{known[0]}"
        if not folder.exists():
            write_random(folder, FAMILIES[known[0]])
        return plugin.Settings(model=str(folder), device_map="cpu")
    fields = plugin.Settings.model_fields
    values = {"base_url": NOBODY, "api_key_env": None, "concurrency": 2, "batch_size": 4,
              "path": Path(os.devnull)}  # fmt: skip
    return plugin.Settings(**{name: values[name] for name in values if name in fields})


def shorten_descriptions(patch: pytest.MonkeyPatch) -> None:
    """Have xgrammar end descriptions after 8 letters: random weights spell on and on."""
    import xgrammar

    original = xgrammar.GrammarCompiler.compile_json_schema

    def compile_json_schema(self: Any, schema: dict[str, Any], **given: Any) -> Any:
        schema["properties"]["general_description"]["maxLength"] = 8
        return original(self, schema, **given)

    patch.setattr(xgrammar.GrammarCompiler, "compile_json_schema", compile_json_schema)
