"""Side products of a training: trackers, sample grids, the result in other tools' layout.

One that fails is said and left out from then on; it never ends what it stands beside.
"""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class SideProducts:
    """Makes side products, each until it fails; `say` takes a line for the user."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.failed: dict[str, str] = {}  # side product to what was said

    @property
    def warnings(self) -> list[str]:
        """What was said of those that failed."""
        return list(self.failed.values())

    def attempt(self, name: str, make: Callable[[], T]) -> T | None:
        """Return what `make` makes; None where it fails, or something of that name did before."""
        if name in self.failed:
            return None
        try:
            return make()
        except Exception as error:
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            self.failed[name] = f"{name} is left out, since it failed ({cause}); all else goes on"
            self.say(self.failed[name])
            return None
