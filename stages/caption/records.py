"""Records of captions: an answer parsed and rendered, or failed with its reason."""

from collections.abc import Callable

from pipeline.contracts import CaptionRecord, SliceRecord, TumorReport
from pipeline.errors import DataError
from pipeline.settings import CaptionConfig
from stages.components.captioning.captioner import Failure
from stages.components.diffusion.tokens import MAX_TOKENS
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.rendering import render, with_label


def finish_caption(
    item: SliceRecord, answer: str | Failure, config: CaptionConfig, count: Callable[[str], int]
) -> CaptionRecord:
    """Turn an answer into a record: parsed and rendered, or failed with its reason."""
    report: TumorReport | None
    reason = None
    try:
        if isinstance(answer, Failure):
            raise DataError(answer.reason)
        report = parse(answer)
        if config.include_label:
            report = with_label(report, item.label)
        text = render(report, config.style, count, MAX_TOKENS, label=item.label)
    except DataError as error:
        report, text, reason = None, "", str(error)
    is_ok = report is not None
    return CaptionRecord(
        file_name=f"images/{item.split}/{item.slice_id}.png" if is_ok else "",
        text=text,
        slice_id=item.slice_id,
        label=item.label,
        split=item.split,
        status="ok" if is_ok else "failed",
        reason=reason,
        report=report,
        raw="" if isinstance(answer, Failure) else answer,
        num_tokens=count(text) if is_ok else 0,
    )
