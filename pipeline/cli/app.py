"""The command line: registers every command; what is heavy is imported by the command itself."""

import signal
from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.cli import tools
from pipeline.cli.terminal import (
    DryOption,
    Experiment,
    JsonOption,
    QuietOption,
    VerboseOption,
    echo,
    echo_json,
    filter_option,
    on_experiment,
    open_workplace,
    print_scores,
    talk,
)
from pipeline.errors import UsageError

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


@app.callback()
def common(quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Brain MRI in, synthetic brain-tumour MRI out. Research only: not for medical use."""
    talk.quiet, talk.verbose = quiet, verbose


@app.command("run", help="Run an experiment, from the first stage that is not fresh.")
@on_experiment
def run_command(
    experiment: Experiment,
    until: Annotated[
        str | None, typer.Option("--until", help="Last stage to run.", metavar="STAGE")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Where work runs: local.")] = "local",
    dry_run: DryOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Delegate to `runner.run`."""
    talk.quiet, talk.verbose = talk.quiet or quiet, talk.verbose or verbose
    with open_workplace(experiment.data_dir) as workplace:
        from pipeline.run import runner

        if engine != "local":
            raise UsageError(f"--engine: no engine named {engine!r}; available: local")
        settings = experiment.load()
        nodes = runner.run(settings, workplace, arms=experiment.arms, until=until, dry_run=dry_run)
        if not dry_run:
            for page in sorted(nodes[-1].folder(workplace.experiment_dir(settings)).glob("*.html")):
                workplace.say(f"page: {page}")


def _stage_command(stage: str) -> Callable[..., None]:
    @on_experiment
    def command(
        experiment: Experiment,
        upstream: Annotated[
            bool, typer.Option("--upstream", help="Make missing and stale inputs too.")
        ] = False,
        then_report: Annotated[
            bool, typer.Option("--then-report", help="Renew the report if all else is fresh.")
        ] = False,
        dry_run: DryOption = False,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        talk.quiet, talk.verbose = talk.quiet or quiet, talk.verbose or verbose
        with open_workplace(experiment.data_dir) as workplace:
            from pipeline.run import runner

            settings = experiment.load()
            runner.run_stage(
                settings,
                workplace,
                stage,
                arms=experiment.arms,
                upstream=upstream,
                config_path=str(experiment.config),
                dry_run=dry_run,
            )
            if then_report and not dry_run:
                runner.renew_report(settings, workplace, arms=experiment.arms)

    return command


for _name, _help in STAGE_HELP.items():
    app.command(_name, help=_help)(_stage_command(_name))
app.command("compare", help=tools.COMPARE_HELP)(tools.compare_command)
app.command("fetch", help=tools.FETCH_HELP)(on_experiment(tools.fetch_command))
app.command("export", help=tools.EXPORT_HELP)(tools.export_command)
app.command("clean", help=tools.CLEAN_HELP)(tools.clean_command)
embedded = typer.Typer(help="The small models in data/embedded.", no_args_is_help=True)
embedded.command("build", help=tools.BUILD_HELP)(tools.build_command)
captions = typer.Typer(help="Files and artifacts of captions.", no_args_is_help=True)
captions.command("parse", help=tools.PARSE_HELP)(tools.parse_captions_command)
captions.command("compare", help=tools.COMPARE_CAPTIONS_HELP)(tools.compare_captions_command)
app.add_typer(embedded, name="embedded")
app.add_typer(captions, name="captions")


@app.command("status", help="Show every artifact: fresh, partial, stale (and why) or missing.")
@on_experiment
def status_command(experiment: Experiment, as_json: JsonOption = False) -> None:
    """Delegate to `runner.status`."""
    with open_workplace(experiment.data_dir) as workplace:
        from pipeline.run import runner

        settings = experiment.load()
        rows = [
            {
                "stage": item.node.stage,
                "arms": list(item.node.arm_names),
                "state": item.state,
                "reason": item.reason,
                "folder": str(item.node.folder(workplace.experiment_dir(settings))),
            }
            for item in runner.status(settings, workplace, arms=experiment.arms)
        ]
        if as_json:
            echo_json(rows)
            return
        for row in rows:
            arms = f" [{', '.join(row['arms'])}]" if row["arms"] else ""
            reason = f": {row['reason']}" if row["reason"] else ""
            echo(f"{row['state']:8} {row['stage']}{arms}{reason}")


@app.command("verify", help="Compare the files of every artifact with its manifest.")
@on_experiment
def verify_command(
    experiment: Experiment,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare SHA-256 digests too, not only sizes.")
    ] = False,
) -> None:
    """Delegate to `runner.verify`."""
    with open_workplace(experiment.data_dir) as workplace:
        from pipeline.run import runner

        settings = experiment.load()
        compared = runner.verify(settings, workplace, arms=experiment.arms, is_deep=deep)
        damaged = [(node, problems) for node, problems in compared if problems]
        for node, problems in damaged:
            for problem in problems:
                echo(f"{node.title}: {problem}")
        if damaged:
            command = f"mrisynth run --config {experiment.config}"
            echo(f"{len(damaged)} of {len(compared)} damaged; delete them, then `{command}`:")
            for node, _ in damaged:
                echo(f"  {node.folder(workplace.experiment_dir(settings))}")
            raise typer.Exit(1)
        echo(f"{len(compared)} artifacts are as they were made, by {'digest' if deep else 'size'}")


@app.command("check", help="Find all that would fail, before the first expensive step.")
@on_experiment
def check_command(experiment: Experiment) -> None:
    """Delegate to `checks.problems` for the whole plan, done or not."""
    from pipeline.run import checks, plan

    settings = experiment.load()
    nodes = plan.plan(settings, experiment.arms)
    faults = checks.problems(nodes, settings, experiment.data_dir)
    held = f"{len(settings.arms)} arms, {len(nodes)} artifacts; the config holds"
    echo(f"{experiment.config}: {held}")
    for line in [*checks.predictions(nodes, settings), *faults]:
        echo(f"  {line}")
    if faults:
        echo(f"{len(faults)} problem{'s' if len(faults) != 1 else ''}")
        raise typer.Exit(1)
    echo("ready")


@app.command("results", help="Print a dozen headline scores of each arm, or those chosen.")
@on_experiment
def results_command(
    experiment: Experiment,
    stage: Annotated[list[str] | None, filter_option("stage", "caption")] = None,
    metric: Annotated[list[str] | None, filter_option("metric", "kid")] = None,
    group: Annotated[list[str] | None, filter_option("group", "glioma")] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every score.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delegate to `results.collect`, and choose."""
    from pipeline.run import plan, results

    settings = experiment.load()
    folder = experiment.data_dir / "runs" / settings.experiment
    collected = results.collect(plan.plan(settings), folder)
    chosen = {"stage": stage or (), "metric": metric or (), "group": group or ()}
    scores = results.select(collected, {"arm": experiment.arms, **chosen})
    if not (every or as_json or any(chosen.values())):
        scores = results.headlines(scores)
    print_scores(scores, as_json)
    if len(scores) < len(collected) and not as_json:
        echo(
            f"{len(scores):,} of {len(collected):,} scores; the others: --all, or by --stage, "
            "--metric, --group, --arm"
        )


def main() -> None:
    """Entry point of the `mrisynth` command; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
