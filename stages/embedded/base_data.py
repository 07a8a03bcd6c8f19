"""Training data of the tiny base models: tumour-free slices as latents, with their captions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.contracts import Modality, Orientation, TumorReport
from stages.components.diffusion.grounding import place_tokens
from stages.components.phantoms.subject import MODALITIES
from stages.components.tumor_report.mirroring import PLANES, mirror_words
from stages.components.tumor_report.rendering import describe, render
from stages.components.tumor_report.words import ORIENTATIONS
from stages.embedded import vocabulary
from stages.embedded.base_training import BaseTrainingSet, encode_images
from stages.embedded.corpora import findings, heads

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

Wordings = tuple[str, ...]


def captions_of(modality: Modality, orientation: Orientation) -> list[str]:
    """Word one healthy slice in the ways that captions and prompts are worded."""
    plane = orientation.capitalize()
    descriptions = (
        describe("notumor", modality, orientation),
        f"{plane} brain MRI showing normal brain structures, with no visible tumor.",
    )
    reports = [
        TumorReport(tumor=False, orientation=orientation, general_description=text)
        for text in descriptions
    ]
    return [
        render(reports[0], "structured", count_words),
        render(reports[0], "sentence", count_words),
        render(reports[1], "structured", count_words),
    ]


def captions_of_finding(report: TumorReport, name: str) -> list[str]:
    """Word one slice with a finding called `name` in the ways that tumours are worded.

    >>> report = TumorReport(tumor=False, location="falx", size="small", orientation="axial")
    >>> captions_of_finding(report, "cyst")[1]
    'Axial brain MRI showing a small cyst located in the falx.'
    """
    unsaid = report.model_copy(update={"tumor": None, "general_description": None})
    sentence = render(unsaid, "sentence", count_words).replace("finding", name)
    published = report.model_copy(update={"general_description": sentence})
    return [
        render(report, "structured", count_words),
        sentence,
        render(published, "structured", count_words),
    ]


def count_words(text: str) -> int:
    """Bound the tokens of a text that the tiny tokenizer knows word by word."""
    return len(text.replace(";", " ;").replace(":", " :").replace("-", " - ").split()) + 2


def build_tokenizer() -> "CLIPTokenizer":
    """Learn the tokenizer from the captions of healthy slices and a list of words."""
    texts = [
        text
        for modality in MODALITIES
        for plane in ORIENTATIONS
        for text in captions_of(cast("Modality", modality), plane)
    ]
    return vocabulary.build_tokenizer(texts)


def training_set(
    healthy: heads.HeadCorpus,
    others: findings.FindingCorpus,
    vae: "AutoencoderKL",
    tokenizer: "CLIPTokenizer",
) -> BaseTrainingSet:
    """Encode the slices of healthy heads and of heads with findings, each also mirrored."""
    planes = [ORIENTATIONS[code] for code in healthy.orientation]
    modalities = [cast("Modality", MODALITIES[code]) for code in healthy.modality]
    wordings = [
        tuple(captions_of(modality, plane))
        for modality, plane in zip(modalities, planes, strict=True)
    ]
    images, texts = with_mirrored(healthy.images, planes, wordings)
    num_healthy = len(images)

    planes = [cast("Orientation", report.orientation) for report in others.reports]
    wordings = [
        tuple(captions_of_finding(report, name))
        for report, name in zip(others.reports, others.names, strict=True)
    ]
    more_images, more_texts = with_mirrored(others.images, planes, wordings)
    inside, _ = with_mirrored(others.findings.astype(np.uint8), planes, wordings)

    mean, std = encode_images(vae, np.concatenate([images, more_images]))
    cells = torch.zeros(len(mean), 1, *mean.shape[2:], dtype=torch.bool)
    cell = inside.shape[-1] // mean.shape[-1]  # px
    cells[num_healthy:] = F.max_pool2d(torch.from_numpy(inside)[:, None].float(), cell) > 0
    captions = sorted({text for wording in texts + more_texts for text in wording})
    row_of = {text: row for row, text in enumerate(captions)}
    choices = np.array([[row_of[text] for text in wording] for wording in texts + more_texts])
    places = torch.stack([place_tokens(text, tokenizer) for text in captions])
    return BaseTrainingSet(mean, std, choices, captions, places, cells, num_healthy)


def with_mirrored(
    images: NDArray[np.uint8], planes: Sequence[Orientation], wordings: Sequence[Wordings]
) -> tuple[NDArray[np.uint8], list[Wordings]]:
    """Append the mirror images of axial and coronal slices, left and right exchanged in words."""
    turned = [row for row, plane in enumerate(planes) if plane in PLANES]
    mirrored = [tuple(mirror_words(text) for text in wordings[row]) for row in turned]
    return np.concatenate([images, images[turned][:, :, ::-1]]), [*wordings, *mirrored]
