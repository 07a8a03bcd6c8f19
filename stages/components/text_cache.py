"""Text embeddings of frozen encoders, computed once and kept on disk, keyed by content."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.files import read_or_make, write_whole
from stages.components.diffusion.base_model import BaseModel, encode_prompts
from stages.components.latents import TextCache
from stages.finetune.encodings import weights_digest


def cache_texts(base: BaseModel, texts: Sequence[str], cache_dir: Path) -> TextCache:
    """Encode texts that no run has encoded before, and read the others from `cache_dir`.

    An entry is keyed by the encoders' weights, their dtype and the text's tokens, and depends on
    nothing else: each text is encoded by itself, so no neighbour changes its last bits.
    """
    folder = cache_dir / "texts" / encoders_digest(base)[:16]
    distinct = sorted(set(texts))
    rows: list[dict[str, Tensor]] = []
    for text in distinct:
        entry = folder / f"{token_digest(base, text)}.safetensors"
        rows.append(read_or_make(entry, _read_embeddings, partial(_encode, entry, base, text)))
    pooled = [row["pooled"] for row in rows if "pooled" in row]
    return TextCache(
        index={text: row for row, text in enumerate(distinct)},
        prompt_embeds=torch.stack([row["prompt_embeds"] for row in rows]),
        pooled=torch.stack(pooled) if pooled else None,
    )


def _encode(entry: Path, base: BaseModel, text: str) -> None:
    from safetensors.torch import save_file

    with torch.no_grad():
        made = encode_prompts(base, [text])
    tensors = {"prompt_embeds": made.prompt_embeds[0].cpu().contiguous()}
    if made.pooled is not None:
        tensors["pooled"] = made.pooled[0].cpu().contiguous()
    write_whole(entry, partial(save_file, tensors))


def _read_embeddings(entry: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(entry)
    if "prompt_embeds" not in tensors:
        raise ValueError(f"no prompt_embeds among {sorted(tensors)}")
    return tensors


def encoders_digest(base: BaseModel) -> str:
    """Identify the text encoders by settings, weights and dtype, wherever their folder lies."""
    parts = [base.family, str(base.zeros_for_empty)]
    for encoder in base.text_encoders:
        parts += [
            weights_digest(encoder, settings_of(encoder)),
            str(next(encoder.parameters()).dtype),
        ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def settings_of(encoder: nn.Module) -> dict[str, Any]:
    """Return an encoder's settings without those that name folders and versions."""
    config: Any = encoder.config
    settings: dict[str, Any] = config.to_dict()
    return {k: v for k, v in settings.items() if not k.startswith("_") and "version" not in k}


def token_digest(base: BaseModel, text: str) -> str:
    """Identify a text by its tokens in every tokenizer; the empty one may mean zeros."""
    tokens = [
        tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
        for tokenizer in base.tokenizers
    ]
    return hashlib.sha256(repr((text == "", tokens)).encode()).hexdigest()
