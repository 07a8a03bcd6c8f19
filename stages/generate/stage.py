"""Generate synthetic slices from a balanced grid of prompts.

Reads: an adapter (finetune; None samples the base model itself), to repeat the poster test captions
(caption), and to withhold copies the real slices (preprocess).
Writes: `images/IMAGE_ID.png`, RGB uint8 as the pipeline gives them, with prompt, seed, adapter and
`synthetic: true` in their text chunks; one `SyntheticRecord` each. Counterfactuals, the same seeds
asked for the other side, go to `counterfactuals/` and are marked in their records.
Invariants: an image depends on its prompt and its own seed, and seeds depend on the run's seed and
the prompt's place only, so arms differ by their models alone; black, constant and NaN images are
counted and made again with a recorded new seed (copies of training slices too, where they are to
be withheld), and left out and counted when that fails too; a killed run resumes to the same bytes;
processes that share the work change nothing.
Methods: see `orders.describe_method`.
"""

import time
from collections.abc import Collection, Sequence
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
    SliceRecord,
    Stage,
    SyntheticRecord,
)
from pipeline.errors import TrainingError
from pipeline.settings import GenerateConfig
from stages.components.diffusion.base_model import torch_dtype
from stages.components.diffusion.sampling import Guidance, Sampler, build_sampler, prepare
from stages.components.diffusion.tokens import MAX_TOKENS
from stages.generate import batch_size, journal, shares
from stages.generate.grid import describe_sizes
from stages.generate.maker import COPY, CopyWatch, Maker
from stages.generate.orders import ImageOrder, build_orders, cut_batches, describe_method


@dataclass(frozen=True)
class GenerateInputs:
    finetune: Artifact[CheckpointRecord] | None  # None: the base model without LoRA
    caption: Artifact[CaptionRecord] | None  # only for prompts_from "test_captions"
    preprocess: Artifact[SliceRecord] | None = None  # only to withhold copies


def require_few_failures(
    outcomes: Collection[journal.ImageOutcome], orders: Sequence[ImageOrder], config: GenerateConfig
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
            f"{dict(journal.count_faults(list(outcomes)))}. The adapter may have diverged "
            "(or learnt slices by heart, where the fault is 'copy'): look at the training curve. "
            "Else lower generate.guidance_scale, use float32 or raise generate.max_attempts."
        )
    return sorted(failed)


def load_sampler(
    config: GenerateConfig, inputs: GenerateInputs, context: Context, orders: Sequence[ImageOrder]
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
        prepare(part, config)
    guidance: Guidance | None = None
    if config.guidance is not None:
        guide = registry.find(registry.GUIDANCE, config.guidance.name)
        chosen = guide.Settings.model_validate(config.guidance.settings)
        guidance = guide.load(chosen, device=context.device)
    texts = [order.text for order in orders]
    return build_sampler(pipeline, texts, config, refiner=refiner, guidance=guidance)


def load_watch(
    config: GenerateConfig, inputs: GenerateInputs, context: Context
) -> CopyWatch | None:
    """Load what finds copies of training slices, where they are to be withheld."""
    if config.withhold_copies is None:
        return None
    assert inputs.preprocess is not None, "the runner hands slices in"
    rule = registry.find(registry.WITHHOLDING, config.withhold_copies.name)
    watch: CopyWatch = rule.build(
        rule.Settings.model_validate(config.withhold_copies.settings),
        inputs.preprocess,
        device=context.device,
        cache_dir=context.cache_dir,
        progress=context.progress,
    )
    return watch


def make_share(
    shard: int,
    num_shards: int,
    context: Context,
    *,
    config: GenerateConfig,
    inputs: GenerateInputs,
    root: Path,
    orders: Sequence[ImageOrder],
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
    adapter_digest = inputs.finetune.digest if inputs.finetune else None
    marks = {
        "synthetic": "true",
        "software": f"mrisynth {version('mrisynth')}",
        "base_model": config.base_model.name,
        "adapter": adapter_digest or "none",
        "negative_prompt": config.negative_prompt,
    }
    for part, plugin in (("refiner", config.refiner), ("guidance", config.guidance)):
        if plugin is not None:
            marks[part] = plugin.name
    path = journal.journal_path(root, shard, num_shards)
    outcomes: list[journal.ImageOutcome] = []

    def note(outcome: journal.ImageOutcome) -> None:
        journal.append(path, outcome)
        outcomes.append(outcome)

    maker = Maker(
        sampler=sampler,
        size=batch_size.build_batch_size(config.batch_size, sampler, context.progress),
        output=ArtifactWriter(root, SyntheticRecord),
        note=note,
        run_seed=context.seed,
        max_attempts=config.max_attempts,
        adapter_digest=adapter_digest,
        marks=marks,
        watch=load_watch(config, inputs, context),
    )
    for number, batch in enumerate(left, start=1 + len(batches) - len(left)):
        num_noted = len(outcomes)
        maker.make(batch)
        journal.sync(path, outcomes[num_noted:])
        require_few_failures(outcomes, orders, config)
        if number == len(batches) or number % max(1, len(batches) // 10) == 0:
            context.progress(f"generate: {number} of {len(batches)} batches")
    return maker.size.size


def run(
    config: GenerateConfig,
    inputs: GenerateInputs,
    output: ArtifactWriter[SyntheticRecord],
    context: Context,
) -> None:
    """Make every image once, and write the records in the order of the prompts."""
    torch.set_num_threads(context.num_threads)
    orders = build_orders(
        config,
        inputs.caption.records() if inputs.caption else None,
        inputs.finetune.root if inputs.finetune else None,
        context.seed,
    )
    too_long = [order.image_id for order in orders if order.num_tokens > MAX_TOKENS]
    if too_long:
        context.progress(
            f"generate: {len(too_long)} prompts have more than {MAX_TOKENS} tokens and are cut, "
            f"the first that of {too_long[0]!r}"
        )
    done = journal.read_all(output.root)
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
    sizes = shares.run_shares(share, config.num_shards, context)
    seconds, images_now = time.monotonic() - began, len(orders) - len(done)

    outcome_of = journal.read_all(output.root)
    outcomes = [outcome_of[order.image_id] for order in orders]
    failed = require_few_failures(outcomes, orders, config)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    output.write(records)
    faults = journal.count_faults(outcomes)
    output.counts |= {
        "made_again": faults.total(),
        "failed": len(failed),
        "prompts_cut": len(too_long),
        "counterfactuals": sum(record.counterfactual_of is not None for record in records),
        "copies_withheld": faults[COPY],
    }
    output.notes |= {
        "methods": describe_method(config, orders, context.seed),
        "faults": dict(faults),
        "failed": failed,
        "distinct_prompts": len({order.text for order in orders}),
        "sizes": describe_sizes(
            (order.prompt for order in orders), inputs.caption.records() if inputs.caption else ()
        ),
        "batch_size": min((size for size in sizes if size is not None), default=None),
        "seconds_per_image": seconds / images_now if images_now else None,
        "dtype": context.dtype,
        "value_range": "uint8 [0, 255], RGB",
    }


STAGE = Stage("generate", run, GenerateConfig, GenerateInputs, SyntheticRecord)
