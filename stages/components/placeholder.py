"""The placeholder of a textual inversion in texts: where it stands and what room it takes.

A caption opens with the placeholder, in training as in generation: `<mri-slice> tumor: yes; ...`.
Of several vectors it is written once, and becomes `<mri-slice> <mri-slice>_1 ...` where the text is
turned into tokens, as the pipelines of diffusers do it themselves. Imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import TrainingError
from stages.components.clip_text import MAX_TOKENS


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
