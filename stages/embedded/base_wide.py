"""The wide phase of a tiny base model: brains with and without skull, tumour-free as before.

A model of whole heads alone is far from `mini.yaml`, whose brains are stripped: most of what a LoRA
then gains is the loss of skulls. The phase goes on from the weights of `base_training`'s
two phases, in float16 as they are kept, with slices and findings of new heads, half of them
stripped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.components.networks.weights import Family
from stages.embedded import base_data
from stages.embedded.base_training import BaseTraining, Networks, train
from stages.embedded.corpora import findings, heads

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

SUBJECTS = {"wide": 60, "wide_findings": 36, "wide_val": 24}  # of `wide` ones, two are one head
SETTINGS: dict[Family, BaseTraining] = {
    "sdxl": BaseTraining("sdxl", healthy_steps=0, findings_steps=1500, focus=3.0, seed=3)
}


def build_corpora(cache_dir: Path, size: int, progress: Callable[[str], None]) -> None:
    """Make the shards that are not there yet, two at a time."""
    for split in ("wide_val", "wide"):
        heads.build(cache_dir, SUBJECTS[split], split, size, 2, progress)
    findings.build(cache_dir, SUBJECTS["wide_findings"], "wide_findings", size, 2, progress)


def kinds_of(held_out: heads.HeadCorpus) -> dict[str, NDArray[np.bool_]]:
    """Say which slices of `wide_val` show a whole head, and which a brain alone."""
    stripped = np.array([heads.head_of("wide_val", row)[1] for row in held_out.subject], np.bool_)
    return {"heads": ~stripped, "brains": stripped}


def widen(
    start: Networks,
    family: Family,
    vae: "AutoencoderKL",
    tokenizer: "CLIPTokenizer",
    size: int,
    cache_dir: Path,
    device: str,
    progress: Callable[[str], None],
) -> Networks:
    """Train `start` on with brains and heads, or go on from the checkpoint.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint does not fit these networks.
    """
    data = base_data.training_set(
        heads.read(cache_dir, SUBJECTS["wide"], "wide", size),
        findings.read(cache_dir, SUBJECTS["wide_findings"], "wide_findings", size),
        vae,
        tokenizer,
    )
    folder = cache_dir / "wide"
    folder.mkdir(exist_ok=True)
    return train(data, tokenizer, size, folder, SETTINGS[family], device, progress, start)
