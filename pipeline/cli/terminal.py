"""Options of commands, how much is said, and how faults and scores are shown."""

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import PipelineError
from pipeline.run.escaping import escape, escape_lines

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.contracts import ScoreRecord
    from pipeline.run.runner import Workplace
    from pipeline.settings import RunConfig


def expand(path: Path) -> Path:
    """Read `~` as a shell does, which leaves it to us in variables and in `--option=~/x`."""
    return path.expanduser()


ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="The experiment's YAML file.", metavar="FILE", callback=expand
    ),
]
ArmOption = Annotated[
    list[str] | None, typer.Option("--arm", help="Only this arm; may be repeated.", metavar="NAME")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: stage.key=value.", metavar="KEY=VALUE"),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data-dir", help="Where runs and caches go.", envvar="MRISYNTH_DATA", callback=expand
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what failed.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show tracebacks and libraries' messages.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def filter_option(field: str, example: str) -> Any:
    """Make the option that keeps the scores with one value of a field; it may be repeated."""
    words = f"Only scores of this {field}, such as {example}; may be repeated."
    return typer.Option(f"--{field}", help=words, metavar="NAME")


DEFAULT_CONFIG, DEFAULT_DATA = Path("configs/mini.yaml"), Path("data")


@dataclass
class Talk:
    """How much is said; set by the options before the command."""

    quiet: bool = False
    verbose: bool = False


talk = Talk()


@dataclass(frozen=True)
class Experiment:
    """What a command is told of an experiment; each field is an option, see `on_experiment`."""

    config: ConfigOption = DEFAULT_CONFIG
    arm: ArmOption = None
    overrides: SetOption = None
    data_dir: DataOption = DEFAULT_DATA

    @property
    def arms(self) -> list[str]:
        """Names of the arms that were chosen; all when empty."""
        return self.arm or []

    def load(self) -> "RunConfig":
        """Read the experiment's file with its overrides."""
        from pipeline.run import config

        return config.load(self.config, self.overrides or ())


def on_experiment(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Experiment` in place of its first argument, and report."""
    _, *specific = inspect.signature(command).parameters.values()
    shared = inspect.signature(Experiment).parameters

    def with_options(**values: Any) -> None:
        with reported():
            command(Experiment(**{name: values.pop(name) for name in shared}), **values)

    with_options.__doc__ = command.__doc__
    with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
        [*shared.values(), *specific]
    )
    return with_options


def echo(line: str, *, err: bool = False) -> None:
    """Print a line, with whatever would steer the terminal escaped."""
    typer.echo(escape(line), err=err)


def echo_json(value: Any) -> None:
    """Print a JSON value over several lines."""
    typer.echo(escape_lines(json.dumps(value, indent=2, ensure_ascii=False)))


def open_console(**options: Any) -> "Console":
    """Open a console of rich that takes text as it is and escapes what would steer a terminal."""
    from rich.console import Console
    from rich.text import Text

    class EscapingConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escape(text), **options)

    return EscapingConsole(highlight=False, markup=False, emoji=False, **options)


def print_table(show: "Callable[[Any, Console], None]", value: Any) -> None:
    """Have `show` print a value; 160 columns wide where the output is no terminal."""
    show(value, open_console(width=None if sys.stdout.isatty() else 160))


def print_scores(scores: "list[ScoreRecord]", as_json: bool) -> None:
    """Print scores as JSON or as a table."""
    from pipeline.run import results

    if as_json:
        echo_json([score.model_dump(mode="json") for score in scores])
    elif scores:
        print_table(results.print_table, scores)
    else:
        echo("no scores yet: run the caption, evaluate and classify stages first")


@contextmanager
def reported() -> Iterator[None]:
    """Print what a user can mend without a traceback, and leave with its exit code."""
    try:
        yield
    except PipelineError as error:
        if talk.verbose:
            raise
        echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


@contextmanager
def open_workplace(data_dir: Path) -> "Iterator[Workplace]":
    """Set up how lines are shown: a status line on a terminal, plain lines elsewhere."""
    from pipeline.run import provenance, ranks
    from pipeline.run.runner import Workplace

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
        from rich.text import Text

        console = open_console(stderr=True)
        with console.status("", spinner="dots") as status:
            yield Workplace(
                data_dir,
                num_threads,
                console.print,
                lambda line: status.update(Text(escape(line))),  # markup would be obeyed
            )


def _plain(line: str) -> None:
    echo(line, err=True)


def _silent(line: str) -> None:
    del line
