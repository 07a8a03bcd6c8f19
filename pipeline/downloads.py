"""Files that a plug-in needs and that can be fetched: what they are, and where they go.

A plug-in may expose `downloads(settings) -> list[Download]`, all that its settings name;
`check(settings)` says whether they are there, and `pipeline/run/fetch.py` fetches them. Looking
for files, checking them, printing a command and fetching share this one list.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.contracts import Licence

Kind = Literal["data", "weights"]


@dataclass(frozen=True)
class HubFiles:
    """Files of a model on the Hugging Face hub; they go to that library's cache."""

    name: str  # owner/name
    revision: str | None = None  # branch, tag or commit
    include: tuple[str, ...] = ()  # patterns of what is needed; none: everything
    exclude: tuple[str, ...] = ()
    licence: Licence | None = None
    kind: Kind = "weights"

    def command(self) -> str:
        """Word the command that fetches the files, for any POSIX shell.

        Each pattern has a flag of its own: a second one behind a flag would be taken for a file's
        name, and then every pattern would be passed over.

        Example:
            >>> HubFiles("some/model", "v2", ("unet/*.json", "vae/*.json")).command()
            "hf download some/model --revision v2 --include 'unet/*.json' --include 'vae/*.json'"
        """
        words = ["hf", "download", self.name]
        words += ["--revision", self.revision] if self.revision else []
        words += [word for pattern in self.include for word in ("--include", pattern)]
        words += [word for pattern in self.exclude for word in ("--exclude", pattern)]
        return shlex.join(words)


@dataclass(frozen=True)
class WebFile:
    """One file behind an address."""

    url: str
    path: Path  # where it goes
    sha256: str
    licence: Licence | None = None
    kind: Kind = "weights"

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


@dataclass(frozen=True)
class KaggleSet:
    """A public data set of Kaggle, unpacked into a folder of this machine; needs no account."""

    name: str  # owner/name, or owner/name/versions/N
    folder: Path
    licence: Licence | None = None
    kind: Kind = "data"


Download = HubFiles | WebFile | KaggleSet
