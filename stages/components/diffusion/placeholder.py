"""The placeholder of a textual inversion: its place in texts, and its vectors in a file.

A caption opens with the placeholder, in training as in generation: `<mri-slice> tumor: yes; ...`.
Of several vectors it is written once, and becomes `<mri-slice> <mri-slice>_1 ...` where the text is
turned into tokens, as the pipelines of diffusers do it themselves. Imports no torch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import MissingWeightsError, TrainingError
from stages.components.diffusion.tokens import MAX_TOKENS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

EMBEDS_FILE = "learned_embeds.safetensors"  # of a textual inversion, in place of an adapter
WORDS_METADATA_KEY = "textual_inversion"
SDXL_KEYS = ("clip_l", "clip_g")  # of the first encoder and of the second


@dataclass(frozen=True)
class Placeholder:
    """The word that stands for what was learnt, and how many tokens it is."""

    word: str
    num_vectors: int

    @property
    def tokens(self) -> list[str]:
        """Name its tokens, as `load_textual_inversion` names them.

        Example:
            >>> Placeholder("<scan>", 3).tokens
            ['<scan>', '<scan>_1', '<scan>_2']
        """
        return [self.word, *(f"{self.word}_{number}" for number in range(1, self.num_vectors))]

    def open(self, text: str, count_tokens: Callable[[str], int]) -> str:
        """Put the word before a text; words are cut from its end until both fit 77 tokens.

        Captions end in their description, so that fields are the last to go.

        Args:
            text: A caption or prompt.
            count_tokens: Tokens of a text, with the marks for begin and end.

        Example:
            >>> count = lambda text: len(text.split())
            >>> Placeholder("<scan>", 70).open("tumor: no; axial brain MRI", count)
            '<scan> tumor: no; axial brain MRI'
            >>> Placeholder("<scan>", 74).open("tumor: no; axial brain MRI", count)
            '<scan> tumor: no; axial'
        """
        words = text.split(" ")
        while words and self.num_vectors + count_tokens(" ".join(words)) > MAX_TOKENS:
            words.pop()
        kept = " ".join(words)
        return f"{self.word} {kept if kept == text else kept.rstrip(',;:-')}".rstrip()

    def counter(self, count_tokens: Callable[[str], int]) -> Callable[[str], int]:
        """Build a function that counts the tokens of opened texts too.

        Example:
            >>> count = Placeholder("<scan>", 4).counter(lambda text: len(text.split()))
            >>> count("<scan> a tumor"), count("a tumor")
            (6, 2)
        """

        def count(text: str) -> int:
            rest = text.removeprefix(self.word)
            return count_tokens(rest.lstrip()) + (self.num_vectors if rest != text else 0)

        return count


def add_to(tokenizers: Sequence[Any], placeholder: Placeholder) -> None:
    """Make the placeholder's tokens known to tokenizers, behind all others.

    Raises:
        TrainingError: One of them is known already.
    """
    for tokenizer in tokenizers:
        known = [token for token in placeholder.tokens if token in tokenizer.get_vocab()]
        if known:
            raise TrainingError(
                f"finetune.inversion.placeholder: the base model's tokenizer knows {known[0]!r} "
                "already; choose another word"
            )
    for tokenizer in tokenizers:
        tokenizer.add_tokens(placeholder.tokens)


def expand(tokenizer: Any, text: str) -> str:
    """Write out all tokens of the placeholder that a text opens with; other texts stay.

    The same as the pipelines' `maybe_convert_prompt` for such texts.
    """
    first = text.partition(" ")[0]
    added = tokenizer.added_tokens_encoder
    if f"{first}_1" not in added:
        return text
    names = [first]
    while f"{first}_{len(names)}" in added:
        names.append(f"{first}_{len(names)}")
    return " ".join(names) + text.removeprefix(first)


def read_words(path: Path) -> "tuple[Placeholder, list[Tensor]]":
    """Read a textual inversion's file: the placeholder, and its vectors for each text encoder.

    Raises:
        MissingWeightsError: The file is damaged, or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            header = (stored.metadata() or {}).get(WORDS_METADATA_KEY)
            keys = list(SDXL_KEYS) if set(names) == set(SDXL_KEYS) else names
            vectors = [stored.get_tensor(key) for key in keys]
    except (SafetensorError, OSError) as error:
        raise MissingWeightsError(
            f"textual inversion {path} cannot be read ({error}); it is cut short or no safetensors "
            "file. Rerun finetune."
        ) from error
    if header is None:
        raise MissingWeightsError(
            f"textual inversion {path} does not name its word. Rerun finetune."
        )
    return Placeholder(json.loads(header)["placeholder"], len(vectors[0])), vectors


def load_words(pipeline: "DiffusionPipeline", folder: Path) -> None:
    """Load a textual inversion into a pipeline, as a user of plain diffusers would.

    Raises:
        MissingWeightsError: The file is damaged, or was made on another kind of base model.
    """
    path = folder / EMBEDS_FILE
    placeholder, vectors = read_words(path)
    suffixes = ("", "_2") if hasattr(pipeline, "text_encoder_2") else ("",)
    parts = [
        (getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}"))
        for suffix in suffixes
    ]
    made = [vector.shape[1] for vector in vectors]
    takes = [encoder.get_input_embeddings().weight.shape[1] for encoder, _ in parts]
    if made != takes:
        raise MissingWeightsError(
            f"textual inversion {path} was made on another base model: its vectors have the widths "
            f"{made}, this model's text encoders take {takes}. Name the base model of its finetune "
            "run."
        )
    for vector, (encoder, tokenizer) in zip(vectors, parts, strict=True):
        pipeline.load_textual_inversion(
            vector, token=placeholder.word, text_encoder=encoder, tokenizer=tokenizer
        )


def open_prompts(
    folder: Path | None, texts: list[str], count_tokens: Callable[[str], int]
) -> tuple[list[str], Callable[[str], int]]:
    """Open prompts with the word of the textual inversion in a folder, as its captions were.

    Returns:
        The prompts, and what counts their tokens; both as given where there is none.

    Raises:
        MissingWeightsError: The file is damaged.
    """
    if folder is None or not (folder / EMBEDS_FILE).is_file():
        return texts, count_tokens
    word = read_words(folder / EMBEDS_FILE)[0]
    return [word.open(text, count_tokens) for text in texts], word.counter(count_tokens)
