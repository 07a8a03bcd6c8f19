"""`mrisynth captions`: what files and artifacts of captions state, and how they agree."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

captions = typer.Typer(help="Files and artifacts of captions.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@captions.command("parse", help='Count what lines of {"file_name", "text"} state, and what fails.')
def parse_captions_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.jsonl")],
    base_model: Annotated[
        str, typer.Option("--base-model", help="Whose tokenizers count.", metavar="NAME")
    ] = "tiny_sdxl",
    as_json: JsonOption = False,
) -> None:
    """Delegate to `caption_survey`."""
    from pipeline.cli import DEFAULT_DATA, _reported, _workplace

    with _reported(), _workplace(DEFAULT_DATA):
        from stages.components import caption_survey

        found = caption_survey.survey_file(path, base_model)
        _print_found(found, caption_survey.print_survey, as_json)


@captions.command("compare", help="Score sets of captions (folders or files) and how they agree.")
def compare_captions_command(
    paths: Annotated[list[Path], typer.Argument(metavar="A B ...")],
    as_json: JsonOption = False,
) -> None:
    """Delegate to `caption_comparison`."""
    from pipeline.cli import _reported

    with _reported():
        from pipeline import manifest
        from pipeline.contracts import CaptionRecord
        from stages.components import caption_comparison

        found = caption_comparison.compare(
            caption_comparison.read_artifact(manifest.open_artifact(path, CaptionRecord))
            if path.is_dir()
            else caption_comparison.read_file(path)
            for path in paths
        )
        _print_found(found, caption_comparison.print_comparison, as_json)


def _print_found(found: dict[str, Any], show: Callable[..., None], as_json: bool) -> None:
    import json

    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found, Console(width=None if sys.stdout.isatty() else 160))
