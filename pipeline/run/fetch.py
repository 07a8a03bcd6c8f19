"""Fetches what an experiment needs from elsewhere: weights, data sets, single files.

What is needed, and where it goes, the plug-ins say (`downloads`); what is there, too (`check`).
Each library resumes its own downloads: huggingface_hub file by file, kagglehub its archive; a
single file is fetched again. Nothing is fetched whose terms ask for more than credit unless they
were accepted by name.
"""

import errno
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import registry
from pipeline.contracts import Licence
from pipeline.downloads import Download, HubFiles, KaggleSet, Kind, WebFile
from pipeline.errors import DiskError, PipelineError, RemoteError, UsageError
from pipeline.run.plan import Node

SPARE_BYTES = 2**30


@dataclass(frozen=True)
class Requirement:
    """One plug-in of an experiment: what it lacks, and what of that can be fetched."""

    plugin: str  # folder and name
    problems: Sequence[str]  # empty: all is there
    downloads: Sequence[Download]
    check: Callable[[], Sequence[str]]  # `problems`, afresh


def list_needs(nodes: Iterable[Node], kinds: Sequence[Kind] = ()) -> list[Requirement]:
    """List the plug-ins that need something from elsewhere, each once.

    Args:
        nodes: The experiment's, whose sections name the plug-ins.
        kinds: Only plug-ins with downloads of these kinds; empty: all that name downloads, and
            those that lack something which cannot be fetched.
    """
    needs: dict[str, Requirement] = {}
    for node in nodes:
        for package, plugin in registry.plugins_of(node.stage, node.config):
            module = registry.find(package, plugin.name)
            key = f"{package}.{plugin.name} {sorted(plugin.settings.items())}"
            if key in needs or not hasattr(module, "check"):
                continue
            settings = module.Settings.model_validate(plugin.settings)

            def check(module: object = module, settings: object = settings) -> list[str]:
                return list(module.check(settings))  # type: ignore[attr-defined]

            downloads = module.downloads(settings) if hasattr(module, "downloads") else []
            problems = check()
            if kinds and not any(item.kind in kinds for item in downloads):
                continue
            if downloads or problems:
                name = f"{package.rpartition('.')[2]}/{plugin.name}"
                needs[key] = Requirement(name, problems, downloads, check)
    return list(needs.values())


def list_missing(needs: Sequence[Requirement]) -> list[Download]:
    """List the downloads of what is not there yet, each once."""
    return list(dict.fromkeys(item for need in needs if need.problems for item in need.downloads))


def require_accepted(downloads: Sequence[Download], accepted: Sequence[str]) -> None:
    """Stop unless all terms that ask for more than credit were accepted.

    Raises:
        UsageError: They were not; lists them, with the options that accept them. Or a name was
            accepted that nothing here has.
    """
    terms = {
        item.licence.part: item.licence
        for item in downloads
        if item.licence is not None and not item.licence.is_permissive
    }
    names = {name.casefold() for name in accepted}
    strangers = names - {part.casefold() for part in terms}
    if strangers and downloads:
        raise UsageError(
            f"--accept-licence: {', '.join(sorted(strangers))} is none of: "
            f"{', '.join(terms) or 'nothing here has terms to accept'}"
        )
    open_terms = [part for part in terms if part.casefold() not in names]
    if open_terms:
        lines = [f"{part}: {terms[part].terms}" for part in open_terms]
        options = " ".join(f"--accept-licence {part!r}" for part in open_terms)
        raise UsageError(
            "terms to read first:\n  " + "\n  ".join(lines) + f"\n  accept them with: {options}"
        )


def measure(download: Download) -> int | None:
    """Ask how many bytes a download has; None where nobody says.

    Raises:
        RemoteError: The hub refuses, for instance since the model is gated.
    """
    if isinstance(download, HubFiles):
        return _measure_hub(download)
    if isinstance(download, WebFile):
        head = urllib.request.Request(download.url, method="HEAD")
        try:
            with urllib.request.urlopen(head, timeout=10) as answer:
                return int(answer.headers["Content-Length"])
        except (OSError, TypeError, ValueError):
            return None
    return None


def place(download: Download) -> Path:
    """Say where a download goes."""
    if isinstance(download, HubFiles):
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)
    return download.path if isinstance(download, WebFile) else download.folder


def require_space(sizes: Iterable[tuple[Download, int | None]]) -> None:
    """Stop before the first byte when the disk cannot hold them all.

    Raises:
        DiskError: It cannot.
    """
    needed: dict[int, tuple[Path, int]] = {}
    for download, size in sizes:
        target = place(download).absolute()
        existing = next(path for path in (target, *target.parents) if path.exists())
        device = existing.stat().st_dev
        needed[device] = (existing, needed.get(device, (existing, 0))[1] + (size or 0))
    for existing, total in needed.values():
        free = shutil.disk_usage(existing).free
        if free < total + SPARE_BYTES:
            raise DiskError(
                f"{existing} has {format_bytes(free)} free, and {format_bytes(total)} are to be "
                f"fetched, with {format_bytes(SPARE_BYTES)} to spare"
            )


def fetch(download: Download) -> Path:
    """Fetch one download; what is there already is kept.

    Raises:
        RemoteError: It cannot be had, with what to do.
        DiskError: The disk is full.
    """
    with _explained(download):
        if isinstance(download, HubFiles):
            from huggingface_hub import constants, snapshot_download

            if constants.HF_HUB_OFFLINE:
                raise RemoteError("HF_HUB_OFFLINE is set; unset it to fetch")
            return Path(
                snapshot_download(
                    download.name,
                    revision=download.revision,
                    allow_patterns=list(download.include) or None,
                    ignore_patterns=list(download.exclude) or None,
                )
            )
        if isinstance(download, WebFile):
            import pooch

            pooch.retrieve(
                download.url,
                known_hash=f"sha256:{download.sha256}",
                fname=download.path.name,
                path=download.path.parent,
                progressbar=False,
            )
            return download.path
        return _fetch_kaggle(download)


def format_bytes(size: int | None) -> str:
    """Write a size for people.

    >>> format_bytes(6938082304), format_bytes(2048), format_bytes(None)
    ('6.5 GiB', '2.0 KiB', 'size unknown')
    """
    if size is None:
        return "size unknown"
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def describe_terms(licence: Licence | None) -> str:
    """Say what the terms of a download are."""
    return "no terms are known" if licence is None else f"{licence.part}: {licence.terms}"


def _measure_hub(download: HubFiles) -> int | None:
    from huggingface_hub import HfApi
    from huggingface_hub.utils._paths import filter_repo_objects

    try:
        with _explained(download):
            model = HfApi().model_info(
                download.name, revision=download.revision, files_metadata=True
            )
    except _UnreachableError:
        return None
    files = filter_repo_objects(
        model.siblings or [],
        allow_patterns=list(download.include) or None,
        ignore_patterns=list(download.exclude) or None,
        key=lambda file: file.rfilename,
    )
    sizes = [file.size for file in files]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _fetch_kaggle(download: KaggleSet) -> Path:
    import kagglehub

    folder = download.folder.absolute()
    cache = folder.with_name(f".{folder.name}.partial")  # beside it: a rename puts it in place
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(cache)
    try:
        unpacked = Path(kagglehub.dataset_download(download.name))
    finally:
        if before is None:
            del os.environ["KAGGLEHUB_CACHE"]
        else:
            os.environ["KAGGLEHUB_CACHE"] = before
    unpacked.rename(folder)
    shutil.rmtree(cache)
    return folder


class _UnreachableError(RemoteError):
    """A server that does not answer."""


@contextmanager
def _explained(download: Download) -> Iterator[None]:
    """Turn what the libraries raise into one line without secrets.

    Raises:
        RemoteError: Of whatever went wrong there.
        DiskError: The disk is full.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except PipelineError:
        raise
    except GatedRepoError:
        address = f"https://huggingface.co/{download.name}"
        raise RemoteError(
            f"{download.name} is gated: accept its terms at {address}, then run `hf auth login` "
            "(or set HF_TOKEN) and fetch again"
        ) from None  # the library's words may hold the request
    except RepositoryNotFoundError:
        raise RemoteError(
            f"{download.name}: the hub has no such model, or shows it only to those who are let in"
        ) from None
    except OSError as error:  # what requests and the hub's library raise are OSErrors, too
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"{place(download)}: the disk is full; what was fetched stays"
            ) from None
        raise _wording(download, error) from None
    except Exception as error:  # kagglehub and httpx have families of their own
        raise _wording(download, error) from None


def _wording(download: Download, error: Exception) -> RemoteError:
    reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    for name in ("HF_TOKEN", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        if os.environ.get(name):
            reason = reason.replace(os.environ[name], "***")
    unreachable = any(
        word in type(cause).__name__
        for cause in _causes(error)
        for word in ("Connect", "Timeout", "LocalEntryNotFound", "OfflineMode")
    )
    kind = _UnreachableError if unreachable else RemoteError
    return kind(f"{download.name} could not be fetched ({reason}); what was fetched stays")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
