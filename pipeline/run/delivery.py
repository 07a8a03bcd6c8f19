"""Delivery out of this machine once a run is through, once for each destination.

Nothing leaves before evaluate has looked for copies of training slices among its images. The
destination is no part of an artifact's digest: an artifact that is fresh can be sent later. A note
beside its folder, `<digest>.sent`, says where it went.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.contracts import ALL, COPIED_SHARE, REAL, ScoreRecord, Stage
from pipeline.errors import RemoteError
from pipeline.run import manifest
from pipeline.run.plan import Node, standing


def destination(node: Node) -> str | None:
    """Return where a node's artifact is to go; None: nowhere."""
    repository: str | None = getattr(node.config, "push_to_hub", None)
    return repository


def is_owed(node: Node, experiment_dir: Path) -> bool:
    """Tell whether an artifact has not been sent where its config asks."""
    target = destination(node)
    if target is None:
        return False
    note = _note(node, experiment_dir)
    return not note.is_file() or target not in note.read_text(encoding="utf-8").splitlines()


def obstacle(node: Node, nodes: Sequence[Node], experiment_dir: Path) -> str | None:
    """Say why an adapter may not leave yet; None if its images were searched and hold no copies.

    Args:
        node: A training.
        nodes: The plan, or the part of it that a command is about.
        experiment_dir: Where artifacts lie.
    """
    evaluate = next((item for item in nodes if item.stage == "evaluate"), None)
    if evaluate is None or standing(evaluate, experiment_dir).state != "fresh":
        return (
            "evaluate has not looked for copies of training slices among its images; "
            "`mrisynth run` does, and sends it then"
        )
    artifact = manifest.open_artifact(evaluate.folder(experiment_dir), ScoreRecord)
    shares = {
        score.arm: score
        for score in artifact.records()
        if (score.metric, score.group) == (COPIED_SHARE, ALL)
    }
    for arm in node.arm_names:
        if arm not in shares or REAL not in shares:
            return (
                f"evaluate has no {COPIED_SHARE} of {arm}; set evaluate.memorisation: true and "
                "generate at least two images"
            )
        share, chance = shares[arm], shares[REAL].value
        least = share.value if share.low is None else share.low
        if least > chance:
            return (
                f"{share.value:.1%} of the images of {arm} are called copies of training slices, "
                f"and {chance:.1%} of held-out slices: look at the closest pairs on the page, and "
                "train for fewer steps or on more slices"
            )
    return None


def send_owed(
    nodes: Sequence[Node],
    experiment_dir: Path,
    load_stage: Callable[[str], Stage],
    say: Callable[[str], None],
) -> None:
    """Send what is owed of a plan, each artifact whatever becomes of the others.

    Raises:
        RemoteError: Destinations that refuse, all of them; the same run tries again.
    """
    faults = list(_faults(nodes, experiment_dir, load_stage, say))
    if faults:
        raise RemoteError("\n  ".join(faults))


def _faults(
    nodes: Sequence[Node],
    experiment_dir: Path,
    load_stage: Callable[[str], Stage],
    say: Callable[[str], None],
) -> Iterator[str]:
    for node in nodes:
        if not is_owed(node, experiment_dir):
            continue
        reason = obstacle(node, nodes, experiment_dir)
        if reason is not None:
            say(f"{node.title}: not sent to {destination(node)}: {reason}")
            continue
        stage = load_stage(node.stage)
        assert stage.deliver is not None, stage.name
        try:
            where = stage.deliver(node.config, node.folder(experiment_dir))
        except RemoteError as error:
            yield str(error)
            continue
        with _note(node, experiment_dir).open("a", encoding="utf-8") as note:
            note.write(f"{destination(node)}\n")
        say(f"{node.title} sent: {where}")


def _note(node: Node, experiment_dir: Path) -> Path:
    folder = node.folder(experiment_dir)
    return folder.with_name(f"{folder.name}.sent")
