"""Textual inversion: new words in the vocabulary of frozen text encoders, learnt from slices.

The file is what `load_textual_inversion` of plain diffusers takes. One encoder (SD 1.5): the word
and its vectors (num_vectors, width), so that the folder itself can be given. Two (SDXL): `clip_l`
and `clip_g`, one call for each encoder; the word stands in the file's metadata.

Encoders whose config has the historic `eos_token_id: 2` (all of the published SD 1.5 and SDXL) pool
at the highest token id, which a new word is. So SDXL's pooled embedding says nothing but the new
word, here as in plain diffusers: it is learnt that way, and must be used that way.

Source: Gal et al., "An Image is Worth One Word", ICLR 2023. Departures: several vectors, both
encoders of SDXL, and the captions of this project in place of "a photo of *".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.settings import InversionConfig
from stages.components.diffusion.base_model import BaseModel
from stages.components.diffusion.placeholder import Placeholder, add_to
from stages.finetune.adapters.lora import AdaptedModel, named_encoders


class LearnedEmbedding(nn.Module):
    """A frozen vocabulary, and behind it the new words: float32, whatever the others are."""

    def __init__(self, frozen: Tensor, learned: Tensor, first: int) -> None:
        super().__init__()
        self.frozen = nn.Parameter(frozen, requires_grad=False)  # (vocabulary, width)
        self.learned = nn.Parameter(learned.float())  # (num_vectors, width)
        self.first = first  # id of the first new word

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (batch, tokens) up: (batch, tokens, width), in the dtype of the vocabulary."""
        known = F.embedding(ids.clamp(max=self.first - 1), self.frozen)
        new = F.embedding((ids - self.first).clamp(min=0), self.learned).to(known.dtype)
        return torch.where((ids >= self.first)[..., None], new, known)


@dataclass(frozen=True)
class InvertedEncoder(AdaptedModel):
    """A text encoder of which only new words are trained."""

    placeholder: Placeholder

    @property
    def learned(self) -> Tensor:
        """The new words' vectors, float32 (num_vectors, width)."""
        vectors: Tensor = self.module.get_input_embeddings().learned
        return vectors


def add_words(base: BaseModel, config: InversionConfig) -> list[InvertedEncoder]:
    """Add the placeholder to every tokenizer and text encoder; only its vectors will be trained.

    They start as the embeddings of the initialiser's tokens, in turn.

    Raises:
        TrainingError: A tokenizer knows the placeholder already, or none of the initialiser.
    """
    placeholder = Placeholder(config.placeholder, config.num_vectors)
    starts = [
        tokenizer(config.initializer, add_special_tokens=False).input_ids
        for tokenizer in base.tokenizers
    ]
    if not all(starts):
        raise TrainingError(
            f"finetune.inversion.initializer: {config.initializer!r} has no token; name a word"
        )
    add_to(base.tokenizers, placeholder)
    models = []
    parts = zip(named_encoders(base).items(), base.tokenizers, starts, strict=True)
    for (prefix, module), tokenizer, tokens in parts:
        frozen = module.get_input_embeddings().weight.detach()
        first = tokenizer.convert_tokens_to_ids(placeholder.word)
        chosen = [tokens[k % len(tokens)] for k in range(config.num_vectors)]
        module.set_input_embeddings(LearnedEmbedding(frozen, frozen[chosen].clone(), first))
        models.append(InvertedEncoder(prefix, module, placeholder))
    return models
