"""Survey of a file of captions (`captions parse`): what it states, and its length rendered."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.contracts import PluginConfig, TumorReport
from pipeline.errors import DataError
from stages.caption.quality import compute_fill_rates, measure_tokens
from stages.components.diffusion.tokens import MAX_TOKENS, load_tokenizers, token_counter
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.rendering import render

NOT_A_CAPTION = "the line is no object with the strings 'file_name' and 'text'"
MAX_SHOWN = 5  # failed lines that the terminal names; --json has them all


@dataclass(frozen=True)
class Line:
    """One line of a file of captions: parsed and rendered, or failed with its reason."""

    number: int  # from 1
    file_name: str | None
    text: str
    report: TumorReport | None = None
    rendered: str = ""
    reason: str | None = None


def survey_file(path: Path, base_model: str) -> dict[str, Any]:
    """Parse and render every caption of a JSON Lines file of `{"file_name", "text"}` objects.

    Args:
        path: the file; blank lines are passed over, any other that is no caption is a failure.
        base_model: the plug-in whose tokenizers count.

    Returns:
        A JSON object: `lines`, `parsed`, `failed`; `reasons` of failure with their counts and
        `failures` one by one; `fill_rate` per field; `distinct` texts; `tokens` of the parsed
        captions before and after rendering in the poster's form.

    Raises:
        DataError: The file is missing or empty.
        UnknownPluginError: There is no such base model.
        MissingWeightsError: Its tokenizer is not on this machine.
    """
    if not path.is_file():
        raise DataError(
            f"no file {str(path)!r}; expected JSON Lines of "
            '{"file_name": "glioma/0010.jpg", "text": "tumor: yes; ..."}'
        )
    count = token_counter(load_tokenizers(PluginConfig(name=base_model)))
    lines = list(iter_lines(path, count))
    if not lines:
        raise DataError(f"{path} holds no line; expected one caption a line")
    good = [line for line in lines if line.reason is None]
    bad = [line for line in lines if line.reason is not None]
    # What stands behind a reason's colon is the caption itself, different in every line.
    reasons = Counter((line.reason or "").partition(": ")[0] for line in bad)
    return {
        "file": str(path),
        "lines": len(lines),
        "parsed": len(good),
        "failed": len(bad),
        "reasons": dict(reasons.most_common()),
        "failures": [
            {"line": line.number, "file_name": line.file_name, "reason": line.reason}
            for line in bad
        ],
        "fill_rate": compute_fill_rates([line.report for line in good if line.report is not None]),
        "num_with_tumor": sum(bool(line.report and line.report.tumor) for line in good),
        "distinct": {
            "raw": len({line.text for line in good}),
            "text": len({line.rendered for line in good}),
        },
        "tokenizer": base_model,
        "tokens": measure_tokens(
            [count(line.text) for line in good],
            [count(line.rendered) for line in good],
            MAX_TOKENS,
        ),
    }


def iter_lines(path: Path, count_tokens: Callable[[str], int]) -> Iterator[Line]:
    """Yield every line that is not blank, parsed and rendered or failed."""
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if content.strip():
                yield _read_line(number, content, count_tokens)


def print_survey(survey: dict[str, Any], console: Console) -> None:
    """Print what `survey_file` found; the console is to take text as it is, without markup."""
    lines, parsed = survey["lines"], survey["parsed"]
    console.print(f"{survey['file']}: {lines:,} lines")
    failed = survey["failed"]
    console.print(f"parsed {parsed:,} ({parsed / lines:.2%}), failed {failed:,}")
    for reason, number in survey["reasons"].items():
        console.print(f"  {number:,}: {reason}")
    for failure in survey["failures"][:MAX_SHOWN]:
        where = f"  line {failure['line']} ({failure['file_name']}): "
        console.print(where + failure["reason"], soft_wrap=True)
    if failed > MAX_SHOWN:
        console.print(f"  ... and {failed - MAX_SHOWN:,} more; --json lists them")
    console.print()
    console.print(
        f"Captions that state each field ({survey['num_with_tumor']:,} state a tumor; only they "
        "count for type, location, side, size, shape and intensity)",
    )
    fields = Table("field", box=None, pad_edge=False)
    fields.add_column("stated", justify="right")
    for field, share in survey["fill_rate"].items():
        fields.add_row(field, f"{share:.1%}")
    console.print(fields)
    console.print()
    console.print(f"Lengths, as the tokenizers of {survey['tokenizer']} count")
    tokens = Table("tokens", box=None, pad_edge=False)
    limit = survey["tokens"]["limit"]
    for name in ("mean", "median", "max", f"over {limit}"):
        tokens.add_column(name, justify="right")
    for name, words in (("before", "as written"), ("after", "rendered")):
        lengths = survey["tokens"][name]
        over = f"{lengths['over']:,} ({lengths['share_over']:.1%})"
        tokens.add_row(
            words, f"{lengths['mean']:.1f}", f"{lengths['median']:g}", f"{lengths['max']}", over
        )
    console.print(tokens)
    distinct = survey["distinct"]
    console.print()
    console.print(
        f"distinct captions: {distinct['raw']:,} as written, {distinct['text']:,} rendered",
    )


def _read_line(number: int, content: bytes, count_tokens: Callable[[str], int]) -> Line:
    try:
        row = json.loads(content)
    except ValueError:  # no JSON, or no UTF-8
        row = None
    row = row if isinstance(row, dict) else {}
    name, text = row.get("file_name"), row.get("text")
    if not isinstance(name, str) or not isinstance(text, str):
        return Line(number, name if isinstance(name, str) else None, "", reason=NOT_A_CAPTION)
    try:
        report = parse(text)
        rendered = render(report, "structured", count_tokens, MAX_TOKENS)
    except DataError as error:
        return Line(number, name, text, reason=str(error))
    return Line(number, name, text, report, rendered)
