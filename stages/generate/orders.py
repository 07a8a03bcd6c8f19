"""Orders, the images of a generation before any is made: prompts, seeds and batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts import CaptionRecord
from pipeline.errors import ConfigError
from pipeline.seeding import derive_seed
from pipeline.settings import GenerateConfig
from stages.components.diffusion.placeholder import open_prompts
from stages.components.diffusion.tokens import MAX_TOKENS, load_tokenizers, token_counter
from stages.generate import batch_size
from stages.generate.grid import build_grid, count_sizes
from stages.generate.prompts import Prompt, prompts_from_captions, swap_side


@dataclass(frozen=True)
class ImageOrder:
    """One image to be made: its prompt, as a request and as text."""

    prompt: Prompt
    text: str
    num_tokens: int
    counterfactual_of: str | None = None

    @property
    def image_id(self) -> str:
        """The image's name, which its seed derives from."""
        return self.prompt.prompt_id

    @property
    def seed_from(self) -> str:
        """The image whose seed it takes: itself, or its original."""
        return self.counterfactual_of or self.image_id

    @property
    def image_path(self) -> str:
        """Where it goes; counterfactuals keep out of the folder that others score whole."""
        folder = "images" if self.counterfactual_of is None else "counterfactuals"
        return f"{folder}/{self.image_id}.png"


def build_orders(
    config: GenerateConfig,
    captions: Iterable[CaptionRecord] | None,
    adapter_dir: Path | None,
    seed: int,
) -> list[ImageOrder]:
    """List the images to be made, worded as the training captions are; counterfactuals come last.

    Raises:
        ConfigError: The negative prompt has more tokens than the text encoders read, or too few
            prompts state a side.
    """
    assert config.base_model is not None, "filled in by the runner"
    assert config.prompt_style is not None, "filled in from caption.style"
    assert config.include_label is not None, "filled in from caption.include_label"
    if config.prompts_from == "grid":
        sizes = None
        if config.grid_sizes == "trained":
            assert captions is not None, "the runner hands captions in"
            sizes = count_sizes(captions)
        prompts = build_grid(
            config.labels,
            config.num_images,
            seed,
            config.prompt_words,
            include_label=config.include_label,
            sizes=sizes,
        )
    else:
        assert captions is not None, "the runner hands captions in"
        prompts = prompts_from_captions(captions, config.labels, config.num_images, seed)
    pairs = list_counterfactuals(prompts, config.counterfactuals)
    count = token_counter(load_tokenizers(config.base_model))
    num_tokens = count(config.negative_prompt)
    if num_tokens > MAX_TOKENS:
        raise ConfigError(
            "the configuration",
            [
                f"generate.negative_prompt: expected at most {MAX_TOKENS} tokens, found "
                f"{num_tokens} in {config.negative_prompt[:60]!r}"
            ],
        )
    requests = [*prompts, *(other for _, other in pairs)]
    origins = [None] * len(prompts) + [prompt.prompt_id for prompt, _ in pairs]
    texts = [prompt.render(config.prompt_style, count) for prompt in requests]
    texts, count = open_prompts(adapter_dir, texts, count)
    return [
        ImageOrder(prompt, text, count(text), origin)
        for prompt, text, origin in zip(requests, texts, origins, strict=True)
    ]


def list_counterfactuals(prompts: Sequence[Prompt], count: int) -> list[tuple[Prompt, Prompt]]:
    """Pair the first `count` prompts that state left or right with their other side.

    The grid's factors meet at random, so the first of them are as good a sample as any.

    Raises:
        ConfigError: There are fewer such prompts.
    """
    pairs = [(prompt, other) for prompt in prompts if (other := swap_side(prompt)) is not None]
    if len(pairs) < count:
        raise ConfigError(
            "the configuration",
            [
                f"generate.counterfactuals: expected at most {len(pairs)}, the prompts of the grid "
                f"that state left or right, found {count}"
            ],
        )
    return pairs[:count]


def cut_batches(orders: Sequence[ImageOrder], config: GenerateConfig) -> list[list[ImageOrder]]:
    """Cut the work the same way for every number of processes, and whether a run resumes or not.

    Rounding depends on a batch's size, so that only this keeps the bytes. Counterfactuals go with
    the batch of their originals, whose seeds they need.
    """
    size = batch_size.LARGEST if config.batch_size == "auto" else config.batch_size
    originals = [order for order in orders if order.counterfactual_of is None]
    others = {order.seed_from: order for order in orders if order.counterfactual_of is not None}
    batches = [originals[i : i + size] for i in range(0, len(originals), size)]
    return [
        [*batch, *(others[order.image_id] for order in batch if order.image_id in others)]
        for batch in batches
    ]


def seed_of(run_seed: int, prompt_id: str, attempt: int) -> int:
    """Derive an image's seed; no arm, batch or model has a part in it."""
    return derive_seed(run_seed, "generate", prompt_id, attempt)


def describe_method(config: GenerateConfig, orders: Sequence[ImageOrder], seed: int) -> str:
    """Write the methods sentences of the report: prompts, sampler, guidance and seeds."""
    originals = [order for order in orders if order.counterfactual_of is None]
    example = next((order for order in originals if order.prompt.report.tumor), originals[0])
    prompts = (
        "worded by a grid that is balanced over class, plane, side, place, size and contrast"
        if config.prompts_from == "grid"
        else "the captions of test slices, word by word"
    )
    rescale = f", rescaled by {config.guidance_rescale:g}" if config.guidance_rescale else ""
    negative = f"“{config.negative_prompt}”" if config.negative_prompt else "none"
    sentences = [
        f"{len(originals):,} slices of {config.image_size} px were asked for by "
        f"{len({order.text for order in originals}):,} prompts, {prompts}, such as "
        f"“{example.text}”",
        f"They were sampled in {config.num_inference_steps} steps of "
        f"{config.scheduler.replace('_', ' ')} at guidance {config.guidance_scale:g}{rescale}; "
        f"negative prompt: {negative}",
        f"The seed of each slice derives from the run's seed {seed} and the place of its prompt "
        "alone, so the n-th slices of all arms share prompt and noise",
    ]
    if len(orders) > len(originals):
        sentences.append(
            f"The first {len(orders) - len(originals)} prompts that state left or right were asked "
            "again with the other side and the same seed"
        )
    for what, plugin in (("refined by", config.refiner), ("steered by", config.guidance)):
        if plugin is not None:
            sentences.append(f"Sampling was {what} {plugin.name}")
    return ". ".join(sentences) + "."
