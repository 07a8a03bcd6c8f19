"""Commands that are no stage: compare, export, captions and embedded; `app` registers them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from pipeline.cli.terminal import (
    DEFAULT_DATA,
    DataOption,
    DeviceOption,
    DryOption,
    Experiment,
    JsonOption,
    echo,
    echo_json,
    open_workplace,
    print_scores,
    print_table,
    reported,
)
from pipeline.errors import MissingWeightsError, UsageError

COMPARE_HELP = "Score a folder of synthetic images against a folder of real ones."
BUILD_HELP = "Train one of the embedded models again, from phantoms only."
CLEAN_HELP = "Remove all runs and caches, unless a run is at work."
EXPORT_HELP = "Write synthetic images as DICOM files that say what they are."
PARSE_HELP = 'Count what lines of {"file_name", "text"} state, and what fails.'
FETCH_HELP = "Fetch the weights and data sets that an experiment needs and this machine lacks."
COMPARE_CAPTIONS_HELP = "Score sets of captions (folders or files) and how they agree."


def compare_command(
    real: Annotated[Path, typer.Argument(metavar="REAL_DIR")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTHETIC_DIR")],
    features: Annotated[str, typer.Option(help="Feature extractor.")] = "efficientnet_lite0",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write JSON here; - prints it.", metavar="FILE")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Delegate to the evaluate stage's own scores."""
    with reported(), open_workplace(DEFAULT_DATA) as workplace:
        out = None if json_path is None or str(json_path) == "-" else json_path
        if out is not None:
            _require_writable(out)  # scoring takes minutes

        from pipeline.run import results
        from stages.evaluate.compare import compare_folders

        scores = compare_folders(
            real,
            synthetic,
            features=features,
            seed=seed,
            device=device,
            progress=workplace.progress,
        )
        if out is not None:
            out.write_text(results.to_json(scores) + "\n", encoding="utf-8")
        print_scores(scores, as_json=str(json_path) == "-")


def _require_writable(path: Path) -> None:
    """Make a file's folder.

    Raises:
        UsageError: Nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {str(path)!r}: a folder, or not ours to write")


def build_command(
    name: Annotated[
        str,
        typer.Argument(help="tiny_sd15, tiny_sdxl, ovis2, gemma3, llava, judge", metavar="NAME"),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Parent of the model's folder.", metavar="DIR")
    ] = None,
    device: DeviceOption = "cpu",
    data_dir: DataOption = DEFAULT_DATA,
) -> None:
    """Delegate to `stages.embedded.build`; a second call goes on where one stopped."""
    with reported(), open_workplace(data_dir) as workplace:
        from pipeline.run import manifest
        from stages.embedded.build import build

        data_dir.mkdir(parents=True, exist_ok=True)
        with manifest.using(data_dir):
            build(
                name,
                out_dir=out or DEFAULT_DATA / "embedded",
                cache_dir=data_dir / "cache" / "embedded",
                device=device,
                progress=workplace.progress,
            )


def clean_command(data_dir: DataOption = DEFAULT_DATA) -> None:
    """Delegate to `runner.clean`."""
    with reported():
        from pipeline.run import runner

        runner.clean(data_dir)


def export_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images that `mrisynth generate` wrote.")
    ],
    dicom: Annotated[bool, typer.Option("--dicom", help="As DICOM Secondary Capture.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to; FOLDER-dicom when not given.", metavar="DIR"),
    ] = None,
) -> None:
    """Delegate to `dicom_export`."""
    with reported():
        from stages.generate.dicom_export import export_folder

        if not dicom:
            raise UsageError("export: expected a format, found none; formats: --dicom")
        target = out or folder.resolve().with_name(f"{folder.resolve().name}-dicom")
        echo(f"{len(export_folder(folder, target))} DICOM files in {target}")


def parse_captions_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.jsonl")],
    base_model: Annotated[
        str, typer.Option("--base-model", help="Whose tokenizers count.", metavar="NAME")
    ] = "tiny_sdxl",
    as_json: JsonOption = False,
) -> None:
    """Delegate to `caption.survey`."""
    with reported(), open_workplace(DEFAULT_DATA):
        from stages.caption import survey

        result = survey.survey_file(path, base_model)
        _print_found(result, survey.print_survey, as_json)


def compare_captions_command(
    paths: Annotated[list[Path], typer.Argument(metavar="A B ...")],
    as_json: JsonOption = False,
) -> None:
    """Delegate to `caption.comparison`."""
    with reported():
        from pipeline.contracts import CaptionRecord
        from pipeline.run import manifest
        from stages.caption import comparison

        result = comparison.compare(
            comparison.read_artifact(manifest.open_artifact(path, CaptionRecord))
            if path.is_dir()
            else comparison.read_file(path)
            for path in paths
        )
        _print_found(result, comparison.print_comparison, as_json)


def _print_found(result: dict[str, Any], show: Callable[..., None], as_json: bool) -> None:
    if as_json:
        echo_json(result)
    else:
        print_table(show, result)


def fetch_command(
    experiment: Experiment,
    what: Annotated[
        str | None, typer.Argument(help="data or weights; both when not given.", metavar="WHAT")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept-licence", help="Terms that you accept.", metavar="NAME"),
    ] = None,
    dry_run: DryOption = False,
) -> None:
    """Delegate to `pipeline.run.fetch`."""
    with open_workplace(experiment.data_dir) as workplace:
        from pipeline.downloads import Kind
        from pipeline.run import fetch, plan

        kinds: tuple[Kind, ...] = get_args(Kind)
        if what is not None and what not in kinds:
            raise UsageError(f"fetch: expected {' or '.join(kinds)}, found {what!r}")
        nodes = plan.plan(experiment.load(), experiment.arms)
        needs = fetch.list_needs(nodes, [kind for kind in kinds if kind == what])
        missing = fetch.list_missing(needs)
        sizes = [(item, fetch.measure(item)) for item in missing]
        for need in needs:
            if not need.problems:
                echo(f"there      {need.plugin}")
            elif not need.downloads:
                echo(f"by hand    {need.plugin}: {need.problems[0]}")
        for item, size in sizes:
            where = f"{fetch.format_bytes(size)}, to {fetch.place(item)}"
            echo(f"to fetch   {item.name}, {where}; {fetch.describe_terms(item.licence)}")
        if not needs:
            echo("nothing is needed from elsewhere")
        if not dry_run:
            fetch.require_accepted(missing, accept or [])
            fetch.require_space(sizes)
            for item in missing:
                workplace.say(f"fetching {item.name}")
                fetch.fetch(item)
            lines = [line for need in needs if need.downloads for line in need.check()]
            if lines:
                raise MissingWeightsError("still missing:\n  " + "\n  ".join(lines))
