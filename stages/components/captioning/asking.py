"""Answers for every slice: earlier ones are taken again, the rest is asked in batches."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from pipeline.contracts import Context, PluginConfig, Section, SliceRecord
from pipeline.errors import DataError, SkippedTooManyError
from stages.components.captioning.cache import CaptionCache
from stages.components.captioning.captioner import (
    Captioner,
    Failure,
    Metered,
    Reply,
    Streaming,
    answer_of,
    model_of,
    usage_of,
)
from stages.components.captioning.journal import Journal
from stages.components.tumor_report.words import shorten

SAME_SHARE = 0.95  # of the answers of a run, word for word: hardly of images any more
LEAST_ANSWERS = 20  # below, it may be chance


def read_settings(plugin: ModuleType, vlm: PluginConfig, context: Context) -> Section:
    """Validate a captioner's settings, with the run's device and dtype where they name none."""
    settings: Section = plugin.Settings.model_validate(vlm.settings)
    if hasattr(plugin, "for_run"):
        settings = plugin.for_run(settings, device=context.device, dtype=context.dtype)
    return settings


def find_sameness(replies: Iterable[Reply]) -> str | None:
    """Say that nearly all answers are the same, which no set of images deserves; None if not."""
    answers = [answer_of(reply) for reply in replies]
    texts = Counter(answer for answer in answers if isinstance(answer, str))
    if texts.total() < LEAST_ANSWERS:
        return None
    (words, count), *_ = texts.most_common(1)
    if count < SAME_SHARE * texts.total():
        return None
    return (
        f"{count} of {texts.total()} answers are the same, {shorten(words, 80)!r}: the captioner "
        "may not see the images; look at its dtype, its processor and its prompt"
    )


def answer_all(
    slices: Sequence[SliceRecord],
    paths: Sequence[Path],
    load: Callable[[], Captioner],
    journal: Journal,
    progress: Callable[[str], None],
    *,
    cache: CaptionCache | None = None,
    max_failed_fraction: float = 1.0,
) -> dict[str, Reply]:
    """Answer for every slice: from the journal, else from the cache, else by asking, in batches.

    What failed is asked again by a resumed run: a server may have been mended. The captioner is
    loaded only if there is something to ask.

    Raises:
        DataError: The captioner gave another number of answers than there were slices.
        SkippedTooManyError: More have failed by now than may fail in the end.
    """
    pairs = list(zip(slices, paths, strict=True))
    earlier = journal.read()
    done = {name for name, reply in earlier.items() if not isinstance(answer_of(reply), Failure)}
    if done:
        progress(f"{len(done)} of {len(slices)} captions were in the journal")
    if cache is not None:
        todo = [(item, path) for item, path in pairs if item.slice_id not in done]
        known = {item.slice_id: cache.read(item, path) for item, path in todo}
        cached = {slice_id: reply for slice_id, reply in known.items() if reply is not None}
        if cached:
            journal.append(cached)
            done |= cached.keys()
            progress(f"{len(cached)} of {len(slices)} captions were in the cache")
    if len(done) == len(slices):
        return journal.read()
    captioner = load()
    if isinstance(captioner, Metered):
        captioner.resume(usage_of(earlier.values()))
    reasons: Counter[str] = Counter()
    unsettled = 0

    def settle() -> None:
        nonlocal unsettled
        if unsettled:
            unsettled = 0
            journal.sync()
            progress(f"{len(done)} of {len(slices)} captions")
            check_failures(reasons, len(slices), max_failed_fraction)

    def keep(item: SliceRecord, path: Path, reply: Reply) -> None:
        nonlocal unsettled
        journal.append({item.slice_id: reply})
        done.add(item.slice_id)
        answer = answer_of(reply)
        if isinstance(answer, Failure):
            reasons[answer.reason] += 1
        elif cache is not None:
            cache.write(item, path, answer, model_of(reply))
        unsettled += 1

    def take(item: SliceRecord, path: Path, reply: Reply) -> None:
        keep(item, path, reply)
        if unsettled >= batch_size:
            settle()

    todo = [(item, path) for item, path in pairs if item.slice_id not in done]
    batch_size = captioner.batch_size
    if isinstance(captioner, Streaming):
        try:
            ask_batch(todo, captioner, take)
        finally:
            for place, reply in captioner.left.items():  # paid for, even if the run ends here
                keep(*todo[place], reply)
        settle()
    else:
        for start in range(0, len(todo), batch_size):
            ask_batch(todo[start : start + batch_size], captioner, take)
            settle()
    replies = journal.read()
    if sameness := find_sameness(replies.values()):
        progress(f"warning: {sameness}")
    return replies


def ask_batch(
    todo: Sequence[tuple[SliceRecord, Path]],
    captioner: Captioner,
    take: Callable[[SliceRecord, Path, Reply], None],
) -> None:
    """Ask about some slices, and hand on each reply as it comes.

    Raises:
        DataError: There were more or fewer replies than slices.
    """
    replies = captioner.describe([item for item, _ in todo], [path for _, path in todo])
    count = len(replies) if isinstance(replies, Sequence) else len(todo)
    if count == len(todo):  # else nobody knows whose replies they are
        count = 0
        try:
            for count, reply in enumerate(replies, start=1):
                if count > len(todo):
                    break
                take(*todo[count - 1], reply)
        finally:
            if isinstance(replies, Generator):
                replies.close()  # and with it what is on its way
    if count != len(todo):
        raise DataError(
            f"the captioner answered {count} times for {len(todo)} slices, "
            f"from {todo[0][0].slice_id!r} on; every slice needs one answer"
        )


def check_failures(reasons: Counter[str], num_slices: int, max_failed_fraction: float) -> None:
    """Stop where too many captions have failed.

    Raises:
        SkippedTooManyError: More captions failed than the configuration allows.
    """
    failed = reasons.total()
    if failed > max_failed_fraction * num_slices:
        most = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise SkippedTooManyError(
            f"{failed} of {num_slices} captions failed, more than "
            f"caption.max_failed_fraction {max_failed_fraction}: {most}. "
            "Mend the captions or raise the limit"
        )
