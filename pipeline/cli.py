"""The command line: parses, delegates, prints. What is heavy is imported by the command itself."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import cli_captions, cli_export
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from pipeline.contracts import ScoreRecord
    from pipeline.runner import Workplace
    from pipeline.settings import RunConfig

STAGE_HELP = {
    "preprocess": "Decode, crop and resize slices; find duplicates; split by subject.",
    "caption": "Write a structured caption for each real slice.",
    "finetune": "Train a LoRA on slices and captions.",
    "generate": "Sample synthetic slices from a balanced grid of prompts.",
    "evaluate": "Score synthetic slices against real ones.",
    "classify": "Train the tumour classifier on real or synthetic slices; test on real ones.",
    "report": "Write the page and results.json from what the other stages made.",
}

app = typer.Typer(
    help="Brain MRI in, synthetic brain-tumour MRI out. Research only: not for medical use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
embedded = typer.Typer(help="The small models in data/embedded.", no_args_is_help=True)
app.add_typer(embedded, name="embedded")
app.add_typer(cli_captions.captions, name="captions")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The experiment's YAML file.", metavar="FILE")
]
ArmOption = Annotated[
    list[str] | None, typer.Option("--arm", help="Only this arm; may be repeated.", metavar="NAME")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: stage.key=value.", metavar="KEY=VALUE"),
]
DataOption = Annotated[
    Path, typer.Option("--data-dir", help="Where runs and caches go.", envvar="MRISYNTH_DATA")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what failed.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show tracebacks and libraries' messages.")
]
JsonOption = cli_captions.JsonOption
DEFAULT_CONFIG, DEFAULT_DATA = Path("configs/mini.yaml"), Path("data")


@dataclass
class Talk:
    """How much is said; set by the options before the command."""

    quiet: bool = False
    verbose: bool = False


talk = Talk()


@app.callback()
def common(quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Brain MRI in, synthetic brain-tumour MRI out. Research only: not for medical use."""
    talk.quiet, talk.verbose = quiet, verbose


@app.command("run", help="Run an experiment, from the first stage that is not fresh.")
def run_command(
    config: ConfigOption = DEFAULT_CONFIG,
    arm: ArmOption = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Last stage to run.", metavar="STAGE")
    ] = None,
    overrides: SetOption = None,
    engine: Annotated[str, typer.Option("--engine", help="Where work runs: local.")] = "local",
    data_dir: DataOption = DEFAULT_DATA,
    dry_run: DryOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Delegate to `runner.run`."""
    talk.quiet, talk.verbose = talk.quiet or quiet, talk.verbose or verbose
    with _reported(), _workplace(data_dir) as workplace:
        from pipeline import runner

        if engine != "local":
            raise UsageError(f"--engine: no engine named {engine!r}; available: local")
        settings = _load(config, overrides)
        nodes = runner.run(settings, workplace, arms=arm or (), until=until, dry_run=dry_run)
        if not dry_run:
            for page in sorted(nodes[-1].folder(workplace.experiment_dir(settings)).glob("*.html")):
                workplace.say(f"page: {page}")


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        config: ConfigOption = DEFAULT_CONFIG,
        arm: ArmOption = None,
        overrides: SetOption = None,
        upstream: Annotated[
            bool, typer.Option("--upstream", help="Make missing and stale inputs too.")
        ] = False,
        then_report: Annotated[
            bool, typer.Option("--then-report", help="Renew the report if all else is fresh.")
        ] = False,
        data_dir: DataOption = DEFAULT_DATA,
        dry_run: DryOption = False,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        talk.quiet, talk.verbose = talk.quiet or quiet, talk.verbose or verbose
        with _reported(), _workplace(data_dir) as workplace:
            from pipeline import runner

            settings = _load(config, overrides)
            runner.run_stage(
                settings,
                workplace,
                stage,
                arms=arm or (),
                upstream=upstream,
                config_path=str(config),
                dry_run=dry_run,
            )
            if then_report and not dry_run:
                runner.renew_report(settings, workplace, arms=arm or ())

    return command


for _name, _help in STAGE_HELP.items():
    app.command(_name, help=_help)(_stage_command(_name))
app.command("export", help=cli_export.HELP)(cli_export.export_command)


@app.command("status", help="Show every artifact: fresh, partial, stale (and why) or missing.")
def status_command(
    config: ConfigOption = DEFAULT_CONFIG,
    arm: ArmOption = None,
    overrides: SetOption = None,
    data_dir: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """Delegate to `runner.status`."""
    with _reported(), _workplace(data_dir) as workplace:
        import json

        from pipeline import runner

        settings = _load(config, overrides)
        rows = [
            {
                "stage": item.node.stage,
                "arms": list(item.node.arm_names),
                "state": item.state,
                "reason": item.reason,
                "folder": str(item.node.folder(workplace.experiment_dir(settings))),
            }
            for item in runner.status(settings, workplace, arms=arm or ())
        ]
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            arms = f" [{', '.join(row['arms'])}]" if row["arms"] else ""
            reason = f": {row['reason']}" if row["reason"] else ""
            typer.echo(f"{row['state']:8} {row['stage']}{arms}{reason}")


@app.command("check", help="Find all that would fail, before the first expensive step.")
def check_command(
    config: ConfigOption = DEFAULT_CONFIG,
    arm: ArmOption = None,
    overrides: SetOption = None,
    data_dir: DataOption = DEFAULT_DATA,
) -> None:
    """Delegate to `checks.problems` for the whole plan, done or not."""
    with _reported():
        from pipeline import checks, plan

        settings = _load(config, overrides)
        nodes = plan.plan(settings, arm or ())
        found = checks.problems(nodes, settings, data_dir)
        typer.echo(f"{config}: {len(settings.arms)} arms, {len(nodes)} artifacts; the config holds")
        for line in [*checks.predictions(nodes, settings), *found]:
            typer.echo(f"  {line}")
        if found:
            typer.echo(f"{len(found)} problem{'s' if len(found) != 1 else ''}")
            raise typer.Exit(1)
        typer.echo("ready")


@app.command("results", help="Print every score of the fresh artifacts.")
def results_command(
    config: ConfigOption = DEFAULT_CONFIG,
    arm: ArmOption = None,
    overrides: SetOption = None,
    data_dir: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """Delegate to `results.collect`."""
    with _reported():
        from pipeline import plan, results

        settings = _load(config, overrides)
        folder = data_dir / "runs" / settings.experiment
        _print_scores(results.collect(plan.plan(settings, arm or ()), folder), as_json)


@app.command("compare", help="Score a folder of synthetic images against a folder of real ones.")
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
    with _reported(), _workplace(DEFAULT_DATA) as workplace:
        from pipeline import results
        from stages.evaluate import compare_folders

        scores = compare_folders(
            real,
            synthetic,
            features=features,
            seed=seed,
            device=device,
            progress=workplace.progress,
        )
        if json_path is not None and str(json_path) != "-":
            json_path.write_text(results.to_json(scores) + "\n", encoding="utf-8")
        _print_scores(scores, as_json=str(json_path) == "-")


@embedded.command("build", help="Train one of the embedded models again, from phantoms only.")
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
    """Delegate to `stages.components.embedded.build`; a second call goes on where one stopped."""
    with _reported(), _workplace(data_dir) as workplace:
        from stages.components.embedded.build import build

        build(
            name,
            out_dir=out or DEFAULT_DATA / "embedded",
            cache_dir=data_dir / "cache" / "embedded",
            device=device,
            progress=workplace.progress,
        )


def main() -> None:
    """Entry point of the `mrisynth` command."""
    app()


def _load(path: Path, overrides: list[str] | None) -> "RunConfig":
    from pipeline import config

    return config.load(path, overrides or ())


def _print_scores(scores: "list[ScoreRecord]", as_json: bool) -> None:
    from rich.console import Console

    from pipeline import results

    if as_json:
        typer.echo(results.to_json(scores))
    elif scores:
        results.print_table(scores, Console(width=None if sys.stdout.isatty() else 160))
    else:
        typer.echo("no scores yet: run the caption, evaluate and classify stages first")


@contextmanager
def _reported() -> Iterator[None]:
    """Print what a user can mend without a traceback, and leave with its exit code."""
    try:
        yield
    except PipelineError as error:
        if talk.verbose:
            raise
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


@contextmanager
def _workplace(data_dir: Path) -> "Iterator[Workplace]":
    """Set up how lines are shown: a status line on a terminal, plain lines elsewhere."""
    from pipeline import provenance, ranks
    from pipeline.runner import Workplace

    if not talk.verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    num_threads = int(threads) if threads.isdigit() and int(threads) else 0
    num_threads = num_threads or provenance.usable_cores()
    if talk.quiet or ranks.current():
        yield Workplace(data_dir, num_threads, _silent, _silent)
    elif not sys.stderr.isatty():
        yield Workplace(data_dir, num_threads, _plain, _plain)
    else:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False)
        with console.status("", spinner="dots") as line:
            yield Workplace(data_dir, num_threads, console.print, line.update)


def _plain(line: str) -> None:
    typer.echo(line, err=True)


def _silent(line: str) -> None:
    del line


if __name__ == "__main__":
    main()
