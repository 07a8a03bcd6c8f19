"""Training of the tiny VLMs: from an image to the tokens of its caption, from scratch.

Only the caption's tokens are learned. A linear head, thrown away afterwards, must find the tumour
in the vision tower's patches: it tells the tower where to look long before the captions do.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.components.networks.training import Losses, describe, fit
from stages.embedded.corpora.truth import TruthCorpus
from stages.embedded.vlm_models import (
    ANSWER_TOKENS,
    FIELDS,
    Family,
    Size,
    build_model,
    build_processor,
    build_tokenizer,
    encode_answer,
)

SIDE, PLANE = FIELDS.index("side"), FIELDS.index("orientation")  # of an answer's tokens


@dataclass(frozen=True)
class VlmTraining:
    """Optimisation settings; every count is in optimiser steps."""

    family: Family
    seed: int = 3
    steps: int = 2400
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    lesion_weight: float = 1.0  # of the auxiliary loss
    lesion_gain: float = 8.0  # of patches with tumour in it: they are one in fifty
    checkpoint_every: int = 100


@dataclass(frozen=True)
class Vocabulary:
    """Token ids that training needs besides the answers'."""

    prompt: Tensor  # int64 (length,): the image's places and the mark for the answer
    token_types: Tensor | None  # int64 (length,), 1 for the image; Gemma 3 only
    left: int
    right: int
    sagittal: int


def encode_corpus(
    corpus: TruthCorpus, family: Family, size: Size
) -> tuple[NDArray[np.int64], Vocabulary]:
    """Return answers as int64 (n, ANSWER_TOKENS), and the other ids."""
    tokenizer = build_tokenizer(family)
    processor = build_processor(family, size, tokenizer)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    blank = np.zeros((size.image_px, size.image_px, 3), np.uint8)
    inputs = processor(text=[prompt], images=[[blank]], return_tensors="pt")
    types = inputs.get("token_type_ids")

    def identify(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    answers = np.array([encode_answer(tokenizer, report) for report in corpus.reports], np.int64)
    return answers, Vocabulary(
        prompt=inputs["input_ids"][0],
        token_types=None if types is None else types[0],
        left=identify(',"side":"left"'),
        right=identify(',"side":"right"'),
        sagittal=identify(',"orientation":"sagittal"'),
    )


def sampling_weights(corpus: TruthCorpus) -> NDArray[np.float64]:
    """Weigh slices so that classes are drawn alike, and rare places more often than they occur.

    Within a class a slice counts by the inverse root of how many share its place.
    """
    places = [report.location or "" for report in corpus.reports]
    _, place, counts = np.unique(places, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(counts[place])
    labels = np.array(corpus.labels)
    for label in np.unique(labels):
        weights[labels == label] /= weights[labels == label].sum()
    return np.asarray(weights / weights.sum())


def mirror(
    images: Tensor, lesions: Tensor, answers: Tensor, chosen: Tensor, words: Vocabulary
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip the chosen slices from left to right, and their sides with them.

    Sagittal slices stay as they are: they face left by convention.

    Args:
        images: (n, 1, h, w).
        lesions: (n, 1, h, w).
        answers: int64 (n, ANSWER_TOKENS).
        chosen: bool (n,).
        words: ids of the sides.
    """
    chosen = chosen & (answers[:, PLANE] != words.sagittal)
    where = chosen[:, None, None, None]
    side = answers[:, SIDE]
    other = torch.where(side == words.left, words.right, side)
    other = torch.where(side == words.right, words.left, other)
    flipped = answers.clone()
    flipped[:, SIDE] = torch.where(chosen, other, side)
    return (
        torch.where(where, images.flip(3), images),
        torch.where(where, lesions.flip(3), lesions),
        flipped,
    )


def augment(images: Tensor, lesions: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turn, zoom and shift a little, and vary brightness, gamma and noise; truth stays true.

    Args:
        images: float32 (n, 1, h, w) in [0, 1].
        lesions: float32 (n, 1, h, w) in [0, 1].
        rng: consumed.
    """
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    turn, zoom = draw(-0.2, 0.2), draw(0.88, 1.14)
    rows = torch.stack(
        [
            torch.stack([turn.cos() * zoom, -turn.sin() * zoom, draw(-0.06, 0.06)], dim=1),
            torch.stack([turn.sin() * zoom, turn.cos() * zoom, draw(-0.06, 0.06)], dim=1),
        ],
        dim=1,
    )  # (n, 2, 3)
    moved = []
    for maps in (images, lesions):
        grid = F.affine_grid(rows, list(maps.shape), align_corners=False)
        moved.append(F.grid_sample(maps, grid, align_corners=False))
    gamma, gain = draw(-0.2, 0.2).exp(), draw(0.8, 1.15)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    noise *= draw(0, 0.03)[:, None, None, None]
    shown = moved[0] ** gamma[:, None, None, None] * gain[:, None, None, None] + noise
    return shown.clamp(0, 1), moved[1]


def patch_features(family: Family, outputs: Any) -> Tensor:
    """Return the vision tower's last features without a class token, (n, patches, width)."""
    features: Tensor = outputs.last_hidden_state
    return features[:, 1:] if family == "llava" else features


def compute_loss(
    model: nn.Module, head: nn.Module, images: Tensor, lesions: Tensor, answers: Tensor,
    words: Vocabulary, settings: VlmTraining,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the captions' cross-entropy per token, and the lesion head's.

    Args:
        model: one of the three.
        head: linear, from a patch's features to the logit of its share of tumour.
        images: float32 (n, 1, h, w) in [0, 1].
        lesions: float32 (n, 1, h, w), 1 in the tumour.
        answers: int64 (n, ANSWER_TOKENS).
        words: the prompt.
        settings: `family` and `lesion_gain` are used.
    """
    vlm = cast("Any", model)
    pixels = (2 * images - 1).expand(-1, 3, -1, -1)
    seen = vlm.get_image_features(pixels, return_dict=True)
    patches = patch_features(settings.family, seen)
    side = round(patches.shape[1] ** 0.5)
    share = F.adaptive_avg_pool2d(lesions, side).flatten(1)
    gain = torch.tensor(settings.lesion_gain, device=images.device)
    lesion = F.binary_cross_entropy_with_logits(head(patches)[..., 0], share, pos_weight=gain)
    prompt = words.prompt.to(answers.device).expand(len(answers), -1)
    inputs: dict[str, Tensor] = {"input_ids": torch.cat([prompt, answers[:, :-1]], dim=1)}
    if words.token_types is not None:
        types = words.token_types.to(answers.device).expand(len(answers), -1)
        inputs["token_type_ids"] = F.pad(types, (0, ANSWER_TOKENS - 1))
    outputs = vlm(
        **inputs, mm_encoder_outputs={"image": seen}, use_cache=False, logits_to_keep=ANSWER_TOKENS
    )
    caption = F.cross_entropy(outputs.logits.flatten(0, 1).float(), answers.flatten())
    return caption, lesion


def head_width(family: Family, size: Size) -> int:
    """Return the width of `patch_features`; Ovis2 joins patches before it hands them out."""
    joined = (size.token_px // size.patch_px) ** 2 if family == "ovis2" else 1
    return size.vision_width * joined


def train(
    corpus: TruthCorpus, size: Size, folder: Path, settings: VlmTraining, device: str,
    progress: Callable[[str], None],
) -> nn.Module:  # fmt: skip
    """Train, or go on from the checkpoint in `folder`; return the model in evaluation mode.

    Every batch is drawn from (seed, step), so a resumed training ends as an unbroken one.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint is damaged or of other widths.
    """
    family = settings.family
    torch.manual_seed(settings.seed)
    model = build_model(family, size, build_tokenizer(family))
    head = nn.Linear(head_width(family, size), 1)
    both = nn.ModuleDict({"vlm": model, "head": head}).to(device).train()
    answers, words = encode_corpus(corpus, family, size)
    weights = sampling_weights(corpus)

    def compute(step: int, rng: np.random.Generator) -> Losses:
        picked = rng.choice(len(answers), settings.batch_size, p=weights)
        images = torch.from_numpy(corpus.images[picked])[:, None].float() / 255
        lesions = torch.from_numpy(corpus.lesions[picked])[:, None].float()
        chosen = torch.from_numpy(rng.random(settings.batch_size) < 0.5)
        targets = torch.from_numpy(answers[picked])
        images, lesions, targets = mirror(images, lesions, targets, chosen, words)
        images, lesions = augment(images, lesions, rng)
        caption, lesion = compute_loss(
            model, head, images.to(device), lesions.to(device), targets.to(device), words, settings
        )
        return Losses(
            caption + settings.lesion_weight * lesion,
            {"caption loss": caption, "lesion loss": lesion},
        )

    fit(
        {"model": both},
        compute,
        settings,
        name=family,
        checkpoint=folder / f"vlm-{family}.ckpt",
        architecture=describe({"family": family, **asdict(size)}),
        progress=progress,
    )
    return model.eval()
