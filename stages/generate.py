"""Generate synthetic slices from a balanced grid of prompts.

Reads: an adapter (finetune; None samples the base model itself) and, to repeat the poster, test
captions (caption).
Writes: `images/IMAGE_ID.png`, RGB uint8 as the pipeline gives them, with prompt, seed, adapter and
`synthetic: true` in their text chunks; one `SyntheticRecord` each.
Invariants: an image depends on its prompt and its own seed, and seeds depend on the run's seed and
the prompt's place only, so arms differ by their models alone; black, constant and NaN images are
counted and made again with a recorded new seed, and left out and counted when that fails too; a
killed run resumes to the same bytes; processes that share the work change nothing.
Methods: "N slices of S px were sampled with K steps of SCHEDULER at guidance G, prompts balanced
over class, plane, side, location and size."
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    Stage,
    SyntheticRecord,
)
from pipeline.errors import ConfigError, TrainingError
from pipeline.seeding import derive_seed
from pipeline.settings import GenerateConfig
from stages.components import batching, image_journal
from stages.components.batching import BatchSize
from stages.components.clip_text import MAX_TOKENS, load_tokenizers, token_counter
from stages.components.diffusion import torch_dtype
from stages.components.image_journal import Outcome
from stages.components.imaging import save_png
from stages.components.prompts import Prompt, build_grid, prompts_from_captions
from stages.components.shares import is_orphan, run_shares
from stages.components.synthesis import Sampler, build_sampler, prepare

TEXT_BATCH = 16  # prompts encoded at once with batch_size: auto


@dataclass(frozen=True)
class GenerateInputs:
    finetune: Artifact[CheckpointRecord] | None  # None: the base model without LoRA
    caption: Artifact[CaptionRecord] | None  # only for prompts_from "test_captions"


@dataclass(frozen=True)
class Order:
    """One image to be made: its prompt, as a request and as text."""

    prompt: Prompt
    text: str
    num_tokens: int

    @property
    def image_id(self) -> str:
        """The image's name, which its seed derives from."""
        return self.prompt.prompt_id


def build_orders(config: GenerateConfig, inputs: GenerateInputs, seed: int) -> list[Order]:
    """List the images to be made, worded as the training captions are.

    Raises:
        ConfigError: The negative prompt has more tokens than the text encoders read.
    """
    assert config.base_model is not None, "filled in by the runner"
    assert config.prompt_style is not None, "filled in from caption.style"
    assert config.include_label is not None, "filled in from caption.include_label"
    if config.prompts_from == "grid":
        prompts = build_grid(
            config.labels,
            config.num_images,
            seed,
            config.prompt_words,
            include_label=config.include_label,
        )
    else:
        assert inputs.caption is not None, "the runner hands captions in"
        captions = inputs.caption.records()
        prompts = prompts_from_captions(captions, config.labels, config.num_images, seed)
    count = token_counter(load_tokenizers(config.base_model))
    found = count(config.negative_prompt)
    if found > MAX_TOKENS:
        raise ConfigError(
            "the configuration",
            [
                f"generate.negative_prompt: expected at most {MAX_TOKENS} tokens, found {found} in "
                f"{config.negative_prompt[:60]!r}"
            ],
        )
    texts = [prompt.render(config.prompt_style, count) for prompt in prompts]
    return [Order(prompt, text, count(text)) for prompt, text in zip(prompts, texts, strict=True)]


def cut_batches(orders: Sequence[Order], config: GenerateConfig) -> list[Sequence[Order]]:
    """Cut the work the same way for every number of processes, and whether a run resumes or not.

    Rounding depends on a batch's size, so that only this keeps the bytes.
    """
    size = batching.LARGEST if config.batch_size == "auto" else config.batch_size
    return [orders[i : i + size] for i in range(0, len(orders), size)]


def seed_of(run_seed: int, prompt_id: str, attempt: int) -> int:
    """Derive an image's seed; no arm, batch or model has a part in it."""
    return derive_seed(run_seed, "generate", prompt_id, attempt)


def make_batch(
    orders: Sequence[Order],
    sampler: Sampler,
    size: BatchSize,
    output: ArtifactWriter[SyntheticRecord],
    note: Callable[[Outcome], None],
    *,
    run_seed: int,
    max_attempts: int,
    adapter_digest: str | None,
    marks: Mapping[str, str],
) -> None:
    """Make and write the images of a batch, those black, constant or NaN again with a new seed.

    `note` hears of every image once: when it is on disk, or after its last attempt.
    """
    faults: dict[str, list[str]] = {order.image_id: [] for order in orders}
    waiting = list(orders)
    for attempt in range(max_attempts):
        seeds = [seed_of(run_seed, order.image_id, attempt) for order in waiting]
        texts = [order.text for order in waiting]
        images, found = batching.draw(sampler, texts, seeds, size)
        for order, seed, image, fault in zip(waiting, seeds, images, found, strict=True):
            if fault is not None:
                faults[order.image_id].append(fault)
                continue
            record = SyntheticRecord(
                image_id=order.image_id,
                image_path=f"images/{order.image_id}.png",
                prompt=order.text,
                requested=order.prompt.report,
                label=order.prompt.label,
                seed=seed,
                attempt=attempt,
                adapter_digest=adapter_digest,
            )
            text = {**marks, "prompt": record.prompt, "seed": str(seed)}
            save_png(output.path(record.image_path), image, text)
            note(Outcome(order.image_id, record, tuple(faults[order.image_id])))
        waiting = [order for order in waiting if len(faults[order.image_id]) > attempt]
        if not waiting:
            return
    for order in waiting:
        note(Outcome(order.image_id, None, tuple(faults[order.image_id])))


def require_few_failures(
    outcomes: Collection[Outcome], orders: Sequence[Order], config: GenerateConfig
) -> list[str]:
    """Return the names of the images that failed at every attempt.

    Raises:
        TrainingError: They are more than `max_failed_fraction` of all.
    """
    failed = {outcome.image_id for outcome in outcomes if outcome.record is None}
    if len(failed) > config.max_failed_fraction * len(orders):
        first = next(order for order in orders if order.image_id in failed)
        raise TrainingError(
            f"image {first.image_id!r} ({first.text!r}) failed {config.max_attempts} times, and so "
            f"did {len(failed) - 1} others of {len(orders)}, more than "
            f"generate.max_failed_fraction {config.max_failed_fraction:g}; faults: "
            f"{dict(image_journal.count_faults(list(outcomes)))}. The adapter may have diverged: "
            "look at the training curve. Else lower generate.guidance_scale, use float32 or raise "
            "generate.max_attempts."
        )
    return sorted(failed)


def load_sampler(
    config: GenerateConfig, inputs: GenerateInputs, context: Context, orders: Sequence[Order]
) -> Sampler:
    """Load the models; only this function picks them."""
    assert config.base_model is not None, "filled in by the runner"
    dtype = torch_dtype(context.dtype)
    plugin = registry.find(registry.BASE_MODELS, config.base_model.name)
    pipeline = plugin.load_pipeline(
        plugin.Settings.model_validate(config.base_model.settings),
        device=context.device,
        dtype=dtype,
        adapter_dir=inputs.finetune.root if inputs.finetune else None,
    )
    refiner = None
    if config.refiner is not None:
        second = registry.find(registry.REFINERS, config.refiner.name)
        settings = second.Settings.model_validate(config.refiner.settings)
        loaded = second.load_pipeline(settings, pipeline, device=context.device, dtype=dtype)
        refiner = (loaded, settings.start)
    for part in (pipeline, *(refiner or ())[:1]):
        prepare(
            part,
            fuse_adapter=config.fuse_adapter,
            channels_last=config.channels_last,
            compile_blocks=config.compile_blocks,
        )
    return build_sampler(
        pipeline,
        [order.text for order in orders],
        negative_prompt=config.negative_prompt,
        scheduler=config.scheduler,
        image_size=config.image_size,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=TEXT_BATCH if config.batch_size == "auto" else config.batch_size,
        guidance_rescale=config.guidance_rescale,
        refiner=refiner,
    )


def make_share(
    shard: int,
    num_shards: int,
    context: Context,
    *,
    config: GenerateConfig,
    inputs: GenerateInputs,
    root: Path,
    orders: Sequence[Order],
    done: frozenset[str],
) -> int | None:
    """Make every `num_shards`-th batch, from the `shard`-th on; skip those that are done.

    Returns:
        The number of images sampled at once in the end; None if there was nothing to do.

    Raises:
        TrainingError: Too many images failed, or memory does not suffice.
    """
    batches = cut_batches(orders, config)[shard::num_shards]
    left = [batch for batch in batches if not done.issuperset(order.image_id for order in batch)]
    if not left:
        return None
    assert config.base_model is not None, "filled in by the runner"
    torch.set_num_threads(context.num_threads)
    sampler = load_sampler(config, inputs, context, orders)
    size = batching.build_batch_size(config.batch_size, sampler, context.progress)
    adapter_digest = inputs.finetune.digest if inputs.finetune else None
    marks = {
        "synthetic": "true",
        "software": f"mrisynth {version('mrisynth')}",
        "base_model": config.base_model.name,
        "adapter": adapter_digest or "none",
        "negative_prompt": config.negative_prompt,
    }
    if config.refiner is not None:
        marks["refiner"] = config.refiner.name
    output = ArtifactWriter(root, SyntheticRecord)
    journal = image_journal.journal_path(root, shard, num_shards)
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        image_journal.append(journal, outcome)
        outcomes.append(outcome)

    for number, batch in enumerate(left, start=1 + len(batches) - len(left)):
        if is_orphan():
            break  # whoever goes on from here must be alone in the folder
        make_batch(
            batch,
            sampler,
            size,
            output,
            note,
            run_seed=context.seed,
            max_attempts=config.max_attempts,
            adapter_digest=adapter_digest,
            marks=marks,
        )
        require_few_failures(outcomes, orders, config)
        if number == len(batches) or number % max(1, len(batches) // 10) == 0:
            context.progress(f"generate: {number} of {len(batches)} batches")
    return size.size


def run(
    config: GenerateConfig,
    inputs: GenerateInputs,
    output: ArtifactWriter[SyntheticRecord],
    context: Context,
) -> None:
    """Make every image once, and write the records in the order of the prompts."""
    torch.set_num_threads(context.num_threads)
    orders = build_orders(config, inputs, context.seed)
    too_long = [order.image_id for order in orders if order.num_tokens > MAX_TOKENS]
    if too_long:
        context.progress(
            f"generate: {len(too_long)} prompts have more than {MAX_TOKENS} tokens and are cut, "
            f"the first that of {too_long[0]!r}"
        )
    done = image_journal.read_all(output.root)
    if done:
        context.progress(f"generate: {len(done)} images were there")
    began = time.monotonic()
    share = partial(
        make_share,
        config=config,
        inputs=inputs,
        root=output.root,
        orders=orders,
        done=frozenset(done),
    )
    sizes = run_shares(share, config.num_shards, context)
    seconds, images_now = time.monotonic() - began, len(orders) - len(done)

    found = image_journal.read_all(output.root)
    outcomes = [found[order.image_id] for order in orders]
    failed = require_few_failures(outcomes, orders, config)
    output.write(outcome.record for outcome in outcomes if outcome.record is not None)
    faults = image_journal.count_faults(outcomes)
    output.counts |= {
        "made_again": faults.total(),
        "failed": len(failed),
        "prompts_cut": len(too_long),
    }
    output.notes |= {
        "faults": dict(faults),
        "failed": failed,
        "distinct_prompts": len({order.text for order in orders}),
        "batch_size": min((size for size in sizes if size is not None), default=None),
        "seconds_per_image": seconds / images_now if images_now else None,
        "dtype": context.dtype,
        "value_range": "uint8 [0, 255], RGB",
    }
    image_journal.remove_all(output.root)


STAGE = Stage("generate", run, GenerateConfig, GenerateInputs, SyntheticRecord)
