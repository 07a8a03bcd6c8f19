"""Prompts: reports asked of the generator, rendered like training captions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.contracts import CaptionRecord, Label, TumorReport
from pipeline.errors import ConfigError, DataError
from pipeline.seeding import numpy_rng
from stages.components.tumor_report.mirroring import SWAP, mirror_words
from stages.components.tumor_report.rendering import Style, render


@dataclass(frozen=True)
class Prompt:
    """One image asked for; `text` is set where it is taken from a caption word for word."""

    prompt_id: str
    label: Label
    report: TumorReport
    text: str | None = None
    slice_id: str | None = None  # whose caption it is

    def render(self, style: Style, count_tokens: Callable[[str], int]) -> str:
        """Return the text for the generator, at most 77 tokens."""
        if self.text is not None:
            return self.text
        return render(self.report, style, count_tokens, label=self.label)


def prompts_from_captions(
    captions: Iterable[CaptionRecord], labels: Sequence[Label], num_images: int, seed: int
) -> list[Prompt]:
    """Take the prompts from test captions, as the poster did: classes in turn, captions shuffled.

    A class with fewer captions than images starts over. Such images are compared with the very
    slices whose captions made them; the grid has no such tie.

    Raises:
        ConfigError: There is no class to ask for.
        DataError: A class has no test caption.
    """
    if not labels:
        raise ConfigError("the configuration", ["generate.labels: expected a class, found ()"])
    by_label: dict[Label, list[CaptionRecord]] = {label: [] for label in labels}
    for record in captions:
        if record.status == "ok" and record.split == "test" and record.label in by_label:
            by_label[record.label].append(record)
    for label, records in by_label.items():
        if not records:
            raise DataError(
                f"generate.prompts_from is 'test_captions', but no test slice of class {label!r} "
                "has a caption; add 'test' to caption.splits, or ask for the grid"
            )
        numpy_rng(seed, "test captions", label).shuffle(records)
    prompts = []
    for index in range(num_images):
        label = labels[index % len(labels)]
        turn = index // len(labels)
        record = by_label[label][turn % len(by_label[label])]
        assert record.report is not None  # status "ok" has one
        identity = f"{record.slice_id}-{turn // len(by_label[label])}"
        prompts.append(Prompt(identity, label, record.report, record.text, record.slice_id))
    return prompts


def swap_side(prompt: Prompt) -> Prompt | None:
    """Ask for the other side and for nothing else; None where neither left nor right is asked for.

    Words of a place and of the description that carry the side are swapped along.
    """
    report = prompt.report
    if report.side not in SWAP or prompt.text is not None:
        return None
    worded = {
        "location_text": report.location_text,
        "general_description": report.general_description,
    }
    swapped = {name: mirror_words(text) for name, text in worded.items() if text}
    other = report.model_copy(update={"side": SWAP[report.side], **swapped})
    return replace(prompt, prompt_id=f"{prompt.prompt_id}-other-side", report=other)
