"""Runner: skips what is fresh, makes the rest, stamps where each artifact came from."""

import dataclasses
import importlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pipeline import files, registry
from pipeline.contracts import SCHEMA_VERSION, Artifact, ArtifactWriter, Context, Record, Stage
from pipeline.errors import MissingArtifactError, PipelineError, StaleArtifactError
from pipeline.run import checks, delivery, failures, manifest, provenance, ranks
from pipeline.run.config import dump
from pipeline.run.engines import local
from pipeline.run.escaping import escape
from pipeline.run.plan import Node, Standing, limit, needed_by, plan, standing
from pipeline.settings import RunConfig


@dataclass(frozen=True)
class Workplace:
    """Where and how an experiment runs; nothing here changes a result."""

    data_dir: Path
    num_threads: int
    say: Callable[[str], None]  # a line for the user
    progress: Callable[[str], None]  # a line that the next one may replace
    rank: int = field(default_factory=ranks.current)  # of the processes of one launch; 0 leads

    def experiment_dir(self, config: RunConfig) -> Path:
        """Folder of an experiment's artifacts."""
        return self.data_dir / "runs" / config.experiment


def run(
    settings: RunConfig,
    workplace: Workplace,
    *,
    arms: Sequence[str] = (),
    until: str | None = None,
    dry_run: bool = False,
) -> list[Node]:
    """Make whatever is not fresh, and return the whole plan.

    Raises:
        PipelineError: A check failed before the first step, or a stage failed.
    """
    nodes = limit(plan(settings, arms), until)
    _run_nodes(nodes, settings, workplace, dry_run=dry_run)
    return nodes


def run_stage(
    settings: RunConfig,
    workplace: Workplace,
    stage: str,
    *,
    arms: Sequence[str] = (),
    upstream: bool = False,
    config_path: str = "CONFIG",
    dry_run: bool = False,
) -> list[Node]:
    """Make one stage's artifacts from inputs that are there, or with `upstream` make those too.

    Raises:
        MissingArtifactError: An input was never made; names the command that makes it.
        StaleArtifactError: An input is out of date; names the command that renews it.
    """
    targets = [node for node in plan(settings, arms) if node.stage == stage]
    experiment_dir = workplace.experiment_dir(settings)
    inputs = needed_by([node for node in targets if not _is_fresh(node, experiment_dir)])
    if upstream or workplace.rank:
        _run_nodes([*inputs, *targets], settings, workplace, dry_run=dry_run)
        return targets
    for node in inputs:
        needed = standing(node, experiment_dir)
        if needed.state != "fresh":
            _refuse(needed, stage, config_path)
    _run_nodes(targets, settings, workplace, dry_run=dry_run)
    return targets


def renew_report(settings: RunConfig, workplace: Workplace, *, arms: Sequence[str] = ()) -> bool:
    """Make the report again if all that it reads is fresh; tell whether it could be made."""
    nodes = plan(settings, arms)
    experiment_dir = workplace.experiment_dir(settings)
    for node in nodes:
        if node.stage != "report" and not _is_fresh(node, experiment_dir):
            workplace.say(f"report: left as it is, since {node.title} is not fresh")
            return False
    _run_nodes([node for node in nodes if node.stage == "report"], settings, workplace)
    return True


def status(
    settings: RunConfig, workplace: Workplace, *, arms: Sequence[str] = ()
) -> list[Standing]:
    """Tell of every artifact of the plan whether it is fresh, partial, stale (why) or missing."""
    experiment_dir = workplace.experiment_dir(settings)
    return [standing(node, experiment_dir) for node in plan(settings, arms)]


def verify(
    settings: RunConfig, workplace: Workplace, *, arms: Sequence[str] = (), is_deep: bool = False
) -> list[tuple[Node, list[str]]]:
    """Compare the artifacts of the plan that were made with their manifests, in order.

    Returns:
        Each with what is wrong with it, a line each: sizes of files, with `is_deep` digests too.
    """
    experiment_dir = workplace.experiment_dir(settings)
    folders = ((node, node.folder(experiment_dir)) for node in plan(settings, arms))
    return [
        (node, manifest.list_problems(folder, is_deep=is_deep))
        for node, folder in folders
        if folder.is_dir()
    ]


def clean(data_dir: Path) -> None:
    """Remove all runs and caches of a data folder.

    Raises:
        ArtifactError: A run is at work there.
    """
    if data_dir.is_dir():
        with manifest.using(data_dir, is_alone=True):
            for name in ("runs", "cache"):
                if (data_dir / name).is_dir():
                    shutil.rmtree(data_dir / name)


def _is_fresh(node: Node, experiment_dir: Path) -> bool:
    return standing(node, experiment_dir).state == "fresh"


def _refuse(needed: Standing, stage: str, config_path: str) -> None:
    node = needed.node
    remedy = (
        f"Run `mrisynth {node.stage} --config {config_path}` first, "
        f"or `mrisynth {stage} --config {config_path} --upstream`."
    )
    if needed.state == "stale":
        raise StaleArtifactError(
            f"{stage} needs {node.title}, which is stale: {needed.reason}. {remedy}"
        )
    raise MissingArtifactError(
        f"{stage} needs {node.title}, which is {needed.state} ({needed.reason}). {remedy}"
    )


def _run_nodes(
    nodes: Sequence[Node], settings: RunConfig, workplace: Workplace, *, dry_run: bool = False
) -> None:
    """Check what can be checked, then run what is not fresh, in order."""
    experiment_dir = workplace.experiment_dir(settings)
    if workplace.rank:
        for node in [] if dry_run else nodes:
            if node.stage in ranks.SHARED_STAGES:
                join(node, settings, workplace)
        return
    standings = [standing(node, experiment_dir) for node in nodes]
    work = [item.node for item in standings if item.state != "fresh"]
    owed = [node for node in nodes if delivery.is_owed(node, experiment_dir)]
    if dry_run:
        for item in standings:
            why = f": {item.reason}" if item.reason else ""
            if item.node in owed:
                why += f", to be sent to {delivery.destination(item.node)}"
            workplace.say(f"{item.state:8} {item.node.title}{why}")
        return
    if not work and not owed:
        workplace.say(f"nothing to do: all {len(nodes)} artifacts are fresh")
        return
    problems = checks.problems(list(dict.fromkeys([*work, *owed])), settings, workplace.data_dir)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        raise PipelineError("\n  ".join([f"{count}, so nothing was started", *problems]))
    with files.disk_explained(f"experiment {settings.experiment}"):
        experiment_dir.mkdir(parents=True, exist_ok=True)
        files.write_text(experiment_dir / "config.yaml", dump(settings))
    logged = dataclasses.replace(
        workplace,
        say=_logging(experiment_dir / "run.log", workplace.say),
        progress=_logging(experiment_dir / "run.log", workplace.progress),
    )
    started = time.monotonic()
    order = {node.digest: number for number, node in enumerate(work, start=1)}

    def execute(node: Node) -> None:
        logged.say(f"[{order[node.digest]}/{len(work)}] {node.title}")
        with failures.explained(node, experiment_dir):
            seconds = make(node, settings, logged)
        logged.say(f"[{order[node.digest]}/{len(work)}] {node.title} done in {seconds:.1f} s")

    try:
        with _warnings_said(logged.say), manifest.using(workplace.data_dir):
            local.run(work, execute)
            delivery.send_owed(nodes, experiment_dir, load_stage, logged.say)
    except KeyboardInterrupt:
        logged.say("interrupted; what is done is kept, and the same command goes on from here")
        raise
    except Exception as error:
        logged.say(f"failed: {type(error).__name__}: {error}")
        raise
    logged.say(f"{len(work)} of {len(nodes)} artifacts made in {time.monotonic() - started:.1f} s")


def make(node: Node, settings: RunConfig, workplace: Workplace) -> float:
    """Make one node's artifact and publish it; return the seconds it took.

    A partial folder that an earlier run left is handed to the stage as it is.

    Raises:
        ArtifactError: Another process is making the same artifact.
    """
    experiment_dir = workplace.experiment_dir(settings)
    final = node.folder(experiment_dir)
    partial = final.with_name(f"{final.name}.partial")
    with manifest.locked(final.with_name(f"{final.name}.lock")):
        if _is_fresh(node, experiment_dir):
            return 0.0  # another process was faster
        stage = load_stage(node.stage)
        resumed = partial.is_dir()
        partial.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(partial)
        if (partial / manifest.NAME).is_file():
            problems = manifest.adopt(partial, final, node.digest)
            if not problems:
                workplace.say(f"{node.title}: an earlier run finished it; put in its place")
                return 0.0
            workplace.say(f"{node.title}: what an earlier run left is made again ({problems[0]})")
        output: ArtifactWriter[Record] = ArtifactWriter(partial, stage.record_type)
        context = build_context(node, settings, workplace)
        started, clock = datetime.now(UTC), time.monotonic()
        stage.run(node.config, build_inputs(stage, node, experiment_dir), output, context)
        seconds = time.monotonic() - clock
        if not (partial / "records.jsonl").is_file():
            raise PipelineError(f"{node.stage} ended without writing records.jsonl in {partial}")
        manifest.publish(
            partial,
            final,
            {
                "schema_version": SCHEMA_VERSION,
                "stage": node.stage,
                "arm_names": list(node.arm_names),
                "digest": node.digest,
                "config": node.recipe["config"],
                "config_digest": manifest.digest_of(node.recipe["config"]),
                "inputs": node.recipe["inputs"],
                "source_digest": node.recipe["source"],
                "source_files": dict(node.source_files),
                "seed": settings.seed,
                "dtype": settings.dtype,
                "versions": provenance.versions(),
                "device": settings.device,
                "machine": provenance.machine(),
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
                "resumed": resumed,  # if so, `seconds` leaves out what an earlier run spent
                "peak_rss_mib": provenance.peak_rss_mib(),
                "parts": registry.list_parts(node.stage, node.config),
                "counts": output.counts,
                "notes": output.notes,
                "files": manifest.list_files(partial),
            },
        )
    return seconds


def join(node: Node, settings: RunConfig, workplace: Workplace) -> None:
    """Run a stage beside rank 0, which makes the artifact; nothing of it is written here."""
    experiment_dir = workplace.experiment_dir(settings)
    final = node.folder(experiment_dir)
    partial = final.with_name(f"{final.name}.partial")

    def can_begin() -> bool:
        inputs = all(_is_fresh(item, experiment_dir) for item in node.upstream())
        begun = partial.is_dir() and not (partial / manifest.NAME).is_file()  # else rank 0 adopts
        return _is_fresh(node, experiment_dir) or (begun and inputs)

    ranks.wait_until(can_begin, node.title)
    if _is_fresh(node, experiment_dir):
        return
    stage = load_stage(node.stage)
    output: ArtifactWriter[Record] = ArtifactWriter(partial, stage.record_type)
    context = build_context(node, settings, workplace)
    stage.run(node.config, build_inputs(stage, node, experiment_dir), output, context)


def build_context(node: Node, settings: RunConfig, workplace: Workplace) -> Context:
    """Say what a stage may know besides its section and inputs; only rank 0 reports progress."""
    cache_dir = workplace.data_dir / "cache"
    cache_dir.mkdir(parents=True, exist_ok=True)

    def progress(line: str) -> None:
        if not workplace.rank:
            workplace.progress(f"{node.title}: {line.removeprefix(f'{node.stage}: ')}")

    return Context(
        experiment=settings.experiment,
        seed=settings.seed,
        device=settings.device,
        dtype=settings.dtype,
        num_threads=workplace.num_threads,
        cache_dir=cache_dir,
        progress=progress,
    )


def load_stage(name: str) -> Stage:
    """Import a stage; only now is any model code loaded."""
    stage = importlib.import_module(f"stages.{name}.stage").STAGE
    assert isinstance(stage, Stage), name
    return stage


def build_inputs(stage: Stage, node: Node, experiment_dir: Path) -> Any:
    """Open a node's inputs as the dataclass that its stage declares.

    Raises:
        ArtifactError: An input artifact is damaged.
    """
    hints = get_type_hints(stage.inputs)
    names = [field.name for field in dataclasses.fields(stage.inputs)]
    assert set(names) == set(node.inputs), (names, list(node.inputs))
    return stage.inputs(
        **{name: _open(hints[name], node.inputs[name], experiment_dir) for name in names}
    )


def _open(hint: Any, value: Node | Mapping[str, Node] | None, experiment_dir: Path) -> Any:
    """Open what one port holds, as its type hint asks."""
    options = [item for item in get_args(hint) if item is not NoneType]
    if value is None:
        assert NoneType in get_args(hint), hint
        return None
    if isinstance(value, Node):
        artifact = hint if get_origin(hint) is Artifact else options[0]
        return manifest.open_artifact(value.folder(experiment_dir), get_args(artifact)[0])
    artifact = options[1]  # dict[str, Artifact[X]]
    return {name: _open(artifact, node, experiment_dir) for name, node in value.items()}


@contextmanager
def _warnings_said(say: Callable[[str], None]) -> Iterator[None]:
    """Show what `pipeline.files` says of damaged files like any other line."""
    handler = logging.Handler()
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    files.log.addHandler(handler)
    try:
        yield
    finally:
        files.log.removeHandler(handler)


def _logging(path: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """Append every line to a log as well, with the time in UTC.

    A log that cannot be written ends no run: that is said in its place.
    """

    def both(line: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as log:
                log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {escape(line)}\n")
        except OSError as error:
            say(f"not logged: {error}")
        say(line)

    return both
