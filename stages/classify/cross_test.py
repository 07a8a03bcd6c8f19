"""Test slices of another source: what classifiers trained here are worth there.

The states that predict the test slices of the experiment's own source predict these too, once, at
the same operating points; nothing is trained, chosen or set on them. Rows stand under the group
`cross_test:NAME`. Pictures that trained or chose are refused by their pixels; the names of subjects
mean nothing between sources, so that one person in both would go unseen.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.contracts import ALL, CROSS_TEST, REAL, Artifact, ScoreRecord, SliceRecord, Task
from pipeline.errors import SampleSizeError, SplitLeakError
from stages.classify.data import Data
from stages.classify.held_out import HeldOut
from stages.classify.scores import Tester
from stages.components.statistics.cohorts import Item, list_real

LEAST_SLICES = 2


@dataclass(frozen=True)
class Elsewhere:
    """The test slices of one other source in one task, and the scores of who predicted them."""

    data: Data
    held_out: HeldOut
    tester: Tester


def gather(others: Mapping[str, Artifact[SliceRecord]], here: Data) -> dict[str, Data]:
    """List the test slices of other sources; what trains and chooses stays the experiment's own.

    Raises:
        SampleSizeError: A source has too few test slices.
        SplitLeakError: A test slice elsewhere is one that trains or chooses here.
    """
    gathered: dict[str, Data] = {}
    if not others:
        return gathered
    seen = _digests(here, [*here.sets[REAL], *here.val])
    for name, artifact in others.items():
        test = sorted(list_real(artifact, "test"), key=lambda item: item.name)
        if len(test) < LEAST_SLICES:
            raise SampleSizeError(
                f"classify.cross_test.{name} needs at least {LEAST_SLICES} test slices, found "
                f"{len(test)} in {artifact.root}; raise its test_fraction"
            )
        records = {record.slice_id: record for record in artifact.records()}
        there = replace(here, test=tuple(test), records=records)
        for digest, item in _digests(there, test).items():
            if digest in seen:
                raise SplitLeakError(
                    f"test slice {item.name!r} of classify.cross_test.{name} has the pixels of "
                    f"{seen[digest].name!r}, which trains or chooses here; name a source without it"
                )
        gathered[name] = there
    return gathered


def prepare(
    others: Mapping[str, Data], task: Task, *, experiment: str, seed: int
) -> dict[str, Elsewhere]:
    """Set up the test slices of other sources in a task; a source without its classes has none."""
    prepared = {}
    for name, whole in others.items():
        data = whole.within(task)
        if len(data.test) >= LEAST_SLICES:
            records = data.records_of(data.test)
            held_out = HeldOut(data.images(data.test), [item.name for item in data.test])
            tester = Tester(data.test, records, experiment=experiment, seed=seed)
            prepared[name] = Elsewhere(data, held_out, tester)
    return prepared


def score(name: str, elsewhere: Elsewhere) -> list[ScoreRecord]:
    """Score everyone over all test slices of another source."""
    return [
        row.model_copy(update={"group": CROSS_TEST + name})
        for arm in elsewhere.tester.predictions
        for row in elsewhere.tester.score(arm)
        if row.group == ALL
    ]


def describe(artifact: Artifact[SliceRecord], by_task: Mapping[Task, Elsewhere]) -> dict[str, Any]:
    """Say what was tested elsewhere, and by which states: JSON values for the manifest."""
    return {
        "source": (artifact.manifest.get("config") or {}).get("source", {}).get("name"),
        "preprocess": artifact.digest,
        "test_use": {task: elsewhere.held_out.proof() for task, elsewhere in by_task.items()},
    }


def _digests(data: Data, items: Sequence[Item]) -> dict[str, Item]:
    """Name slices by their pixels, as a classifier sees them; read one by one."""
    return {hashlib.sha256(data.images([item]).tobytes()).hexdigest(): item for item in items}
