"""Tokens of a text, counted with the tokenizers that will read it."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from pipeline import registry
from pipeline.contracts import PluginConfig

MAX_TOKENS = 77  # context of CLIP's text encoders, with the marks for begin and end


class Tokenizer(Protocol):
    """The part of `transformers.CLIPTokenizer` that counting needs."""

    def __call__(self, text: str, *, truncation: bool, verbose: bool) -> Any:
        """Return a mapping whose `input_ids` are the tokens, begin and end included."""
        ...


def load_tokenizers(plugin: PluginConfig) -> list[Tokenizer]:
    """Load the tokenizers of a base model: one for SD 1.5, two for SDXL; no weights are read.

    Raises:
        UnknownPluginError: There is no such base model.
        MissingWeightsError: Its tokenizer is not on this machine.
    """
    module = registry.find(registry.BASE_MODELS, plugin.name)
    tokenizers: list[Tokenizer] = module.load_tokenizers(
        module.Settings.model_validate(plugin.settings)
    )
    return tokenizers


def token_counter(tokenizers: Sequence[Tokenizer]) -> Callable[[str], int]:
    """Build a function from text to its number of tokens, begin and end included.

    Of several tokenizers the one that needs most tokens counts. Answers are remembered, since
    rendering asks for many beginnings of the same few thousand texts.
    """

    @lru_cache(maxsize=65536)
    def count(text: str) -> int:
        # verbose=False: the warning about texts beyond 77 tokens is what we count them for.
        answers = (tokenizer(text, truncation=False, verbose=False) for tokenizer in tokenizers)
        return max(len(answer["input_ids"]) for answer in answers)

    return count
