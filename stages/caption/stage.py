"""Write a caption for every slice: a captioner's words, parsed, checked and rendered.

Reads the preprocess artifact. Writes `records.jsonl` (`CaptionRecord`, one per slice of the chosen
splits, in their order) and a Hugging Face imagefolder: `images/<split>/<slice_id>.png` and
`metadata.jsonl` with `file_name` and `text`, for the slices whose caption succeeded.

Invariants: a text has at most 77 tokens in every tokenizer of the base model; a caption that failed
is counted with its reason and stays empty; a run that was killed and resumed gives the same bytes.

Methods: "Each slice was described by {vlm}; the description was read into a fixed schema and
rendered as text of at most 77 CLIP tokens, shortening free text and never a field."
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import ModuleType

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    Context,
    Section,
    SliceRecord,
    Stage,
)
from pipeline.errors import ConfigError, DataError
from pipeline.settings import CaptionConfig
from stages.caption.imagefolder import write_imagefolder
from stages.caption.quality import summarise
from stages.caption.records import finish_caption
from stages.components.captioning.asking import answer_all, check_failures, read_settings
from stages.components.captioning.cache import find_cache
from stages.components.captioning.captioner import answer_of, model_of, usage_of
from stages.components.captioning.journal import Journal
from stages.components.diffusion.tokens import MAX_TOKENS, load_tokenizers, token_counter

JOURNAL = "captions.journal.jsonl"


@dataclass(frozen=True)
class CaptionInputs:
    """What the stage reads."""

    preprocess: Artifact[SliceRecord]


def check_upload(
    slices: Sequence[SliceRecord], plugin: ModuleType, settings: Section, config: CaptionConfig
) -> None:
    """Refuse to send slices away whose source does not allow it; before any request.

    Raises:
        ConfigError: A source's slices would go to another machine without its `allow_upload`.
    """
    if not hasattr(plugin, "uploads_to"):
        return
    host = plugin.uploads_to(settings)
    sources = sorted({item.source for item in slices})
    problems = [line for name in sources if (line := config.upload_problem(name, host))]
    if problems:
        raise ConfigError("the configuration", [f"{config.vlm.name} {line}" for line in problems])


def run(
    config: CaptionConfig,
    inputs: CaptionInputs,
    output: ArtifactWriter[CaptionRecord],
    context: Context,
) -> None:
    """Caption every slice of the chosen splits; only this function picks a captioner or writes.

    Raises:
        ConfigError: `caption.tokenizer` is not set, or slices of a source would be sent to another
            machine without its `allow_upload`.
        DataError: No slice is in the chosen splits.
        SkippedTooManyError: More captions failed than `max_failed_fraction`.
    """
    if config.tokenizer is None:
        problem = "caption.tokenizer: expected a base model, found None; name one, as arms do"
        raise ConfigError("the configuration", [problem])
    slices = [item for item in inputs.preprocess.records() if item.split in config.splits]
    if not slices:
        raise DataError(
            f"{inputs.preprocess.root} holds no slice of the splits {', '.join(config.splits)}; "
            "change caption.splits or preprocess"
        )
    plugin = registry.find(registry.VLMS, config.vlm.name)
    settings = read_settings(plugin, config.vlm, context)
    check_upload(slices, plugin, settings, config)
    images = {item.slice_id: inputs.preprocess.path(item.image_path) for item in slices}
    count = token_counter(load_tokenizers(config.tokenizer))
    journal = Journal(output.scratch(JOURNAL))
    paths = [images[item.slice_id] for item in slices]
    replies = answer_all(
        slices,
        paths,
        lambda: plugin.load(settings),
        journal,
        context.progress,
        cache=find_cache(plugin, settings, config.vlm.name, context.cache_dir),
        max_failed_fraction=config.max_failed_fraction,
    )
    answers = {slice_id: answer_of(reply) for slice_id, reply in replies.items()}
    records = [finish_caption(item, answers[item.slice_id], config, count) for item in slices]
    reasons = Counter(record.reason or "" for record in records if record.status == "failed")
    check_failures(reasons, len(records), config.max_failed_fraction)
    write_imagefolder(records, images, output)
    output.write(records)
    output.counts.update(read=len(slices), failed=reasons.total())
    output.notes.update(
        vlm=config.vlm.name,
        style=config.style,
        include_label=config.include_label,
        failed=dict(reasons.most_common(20)),
        usage=asdict(usage_of(replies.values())),
        answered_by=dict(
            Counter(model for reply in replies.values() if (model := model_of(reply)))
        ),
        **summarise(records, slices, count, MAX_TOKENS, seed=context.seed),
    )


STAGE = Stage("caption", run, CaptionConfig, CaptionInputs, CaptionRecord)
