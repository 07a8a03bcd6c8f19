"""A run that is stopped at 24 moments and resumed each time makes what an unbroken one makes."""

import itertools
import signal
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from tests.faults.commands import Moment, Workshop, send, send_to_group
from tests.faults.conftest import Unbroken

pytestmark = pytest.mark.slow

INTERRUPTIONS = [
    partial(send, signal.SIGTERM),
    partial(send_to_group, signal.SIGTERM),
    partial(send, signal.SIGINT),
    partial(send_to_group, signal.SIGINT),
]
NUM_KILLS = 20


def spread(items: Sequence[Moment], count: int) -> list[Moment]:
    """Choose `count` items, the same distance apart."""
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def test_kills_and_signals_lose_nothing(unbroken: Unbroken, workshop: Workshop) -> None:
    moments = unbroken.moments
    before_manifest = [m for m in moments if m.path.endswith("/.manifest.json.TEMPORARY")]
    before_name = [m for m in moments if m.operation == "os.rename" and is_partial(m)]
    after_journal = [
        following
        for moment, following in itertools.pairwise(moments)
        if moment.operation in ("os.remove", "shutil.rmtree") and is_of_the_way(moment)
    ]
    for kind in (before_manifest, before_name, after_journal):
        assert len(kind) >= 3
    named = [m for kind in (before_manifest, before_name, after_journal) for m in spread(kind, 3)]
    kills = dict.fromkeys(named)
    for moment in spread(moments, NUM_KILLS):
        if len(kills) < NUM_KILLS:
            kills[moment] = None
    stops: dict[Moment, Callable[[], None]] = dict.fromkeys(kills, partial(send, signal.SIGKILL))
    others = [moment for moment in moments if moment not in kills]
    stops |= zip(spread(others, len(INTERRUPTIONS)), INTERRUPTIONS, strict=True)

    for moment in sorted(stops, key=moments.index):
        stopped = workshop.start("run", moment, stops[moment])
        status = stopped.wait()
        assert "Traceback" not in stopped.read(), moment
        if moment in kills:
            assert status == -signal.SIGKILL, (moment, stopped.read())
        else:
            assert status == 130, (moment, stopped.read())
            assert "interrupted; what is done is kept" in stopped.read()
    workshop.finish()
    assert workshop.digests() == unbroken.digests
    workshop.finish("verify", "--deep")


def is_partial(moment: Moment) -> bool:
    """Tell whether a moment is of a whole artifact under construction."""
    return moment.path.endswith(".partial") and moment.path.count("/") == 3


def is_of_the_way(moment: Moment) -> bool:
    """Tell whether a moment is of what only going on needs."""
    return "journal" in moment.path or "scratch" in moment.path
