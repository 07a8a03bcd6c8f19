"""A base model of which there is a tokenizer only: one that takes words for tokens."""

from typing import Any

from pipeline.contracts import Section


class Settings(Section):
    pass


def load_tokenizers(settings: Settings) -> list[Any]:
    def tokenizer(text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * (len(text.split()) + 2)}

    return [tokenizer]
