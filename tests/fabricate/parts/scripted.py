"""A base model in the layout of SD 1.5 that notes its calls, and fails at those that are named.

A pipeline counts its calls from 1. Each writes the seeds of its images to the file `calls`.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from stages.components.diffusion.base_models._diffusers import DiffusersPlugin
from stages.components.networks.weights import ModelSettings


class Settings(ModelSettings):
    calls: Path = Path(os.devnull)
    killed_at: int = 0  # this call ends the process, as Ctrl-C does
    broken: dict[int, list[int]] = {}  # call -> rows that are NaN  # noqa: RUF012
    most_at_once: int = 1000  # images; for more there is no memory


PLUGIN = DiffusersPlugin("sd", remedy="Fabricate it.")
check, input_digest, read_networks = PLUGIN.check, PLUGIN.input_digest, PLUGIN.read_networks
load, load_tokenizers = PLUGIN.load, PLUGIN.load_tokenizers


def load_pipeline(settings: Settings, **given: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    class Scripted(StableDiffusionPipeline):  # type: ignore[misc]
        num_calls = 0

        def __call__(self, *, generator: list[torch.Generator], **asked: Any) -> Any:
            seeds = [one.initial_seed() for one in generator]
            with settings.calls.open("a", encoding="utf-8") as out:
                out.write(f"{json.dumps(seeds)}\n")
            self.num_calls += 1
            if self.num_calls == settings.killed_at:
                raise KeyboardInterrupt
            if len(seeds) > settings.most_at_once:
                raise torch.OutOfMemoryError(f"out of memory with {len(seeds)}")
            made = super().__call__(generator=generator, **asked)
            made.images[settings.broken.get(self.num_calls, [])] = torch.nan
            return made

    plain = PLUGIN.load_pipeline(settings, **given)
    return Scripted(**plain.components, requires_safety_checker=False)
