"""YAML: the only module that opens it. Interpolations, keys that are text, and what went wrong."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import ConfigError

UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError)


def read(path: Path) -> dict[str, Any]:
    """Open a YAML file and resolve its interpolations.

    Raises:
        ConfigError: There is no such file, or it is no YAML mapping of sections.
    """
    if not path.is_file():
        raise ConfigError(str(path), ["no such file; give one with --config"])
    try:
        text = path.read_text(encoding="utf-8")
        raw = resolve(text)
    except UNREADABLE as error:
        raise ConfigError(str(path), [explain(error)]) from error
    if not isinstance(raw, dict) or not any(value is not None for value in raw.values()):
        raise ConfigError(str(path), ["expected a mapping of sections, found none"])
    return raw


def resolve(text: str) -> Any:
    """Parse YAML and resolve its interpolations.

    Raises:
        UNREADABLE: Any of these; `explain` says what was wrong.
    """
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)


def _read_variable(name: str, *default: str | None) -> str | None:
    """Read a variable like `${NAME:-default}` in a shell: one that is empty is not set."""
    value = os.environ.get(name)
    if not value and not default:
        raise KeyError(f"environment variable {name!r} is not set or empty")
    return value or default[0]


# Of 2.3 and 2.4: what registered resolvers in 2.3 warns in 2.4.
getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)(
    "oc.env", _read_variable, replace=True
)


def explain(error: Exception) -> str:
    """Say on one line why a text could not be read."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.errno is None:  # OmegaConf's, of a lone scalar
        return "expected a mapping of sections, found one value"
    return " ".join(str(error).split())


def with_text_keys(raw: Any, place: str, report: Callable[[str], None]) -> Any:
    """Take keys that are numbers as text; what YAML made a bool of could have been six words."""
    if isinstance(raw, list):
        return [with_text_keys(item, f"{place}.{n}", report) for n, item in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    for key in raw:
        if isinstance(key, bool):
            words = "yes, on and true" if key else "no, off and false"
            where = f"{place}.{str(key).lower()}".strip(".")
            report(f"{where}: YAML reads {words} as {str(key).lower()}; put it in quotes")
    return {
        str(key): with_text_keys(value, f"{place}.{key}".strip("."), report)
        for key, value in raw.items()
        if not isinstance(key, bool)
    }
