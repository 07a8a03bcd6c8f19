"""Facts that the page prints, read from the run's artifacts; nothing is computed."""

from collections.abc import Mapping
from typing import Any

from stages.report.artifacts import ReportInputs
from stages.report.numbers import Legend, format_any, format_key, format_seconds
from stages.report.tables import Panel, list_notes, table_settings


def read_facts(inputs: ReportInputs, *, seed: int) -> dict[str, str]:
    """Say what was run, when, on what and for how long, from the manifests."""
    manifests = [manifest for _, manifest in inputs.stages()]
    started = sorted(str(manifest["started"]) for manifest in manifests)
    machines = {format_machine(manifest["machine"]) for manifest in manifests}
    bases = sorted({arm.base_model for arm in inputs.arms() if arm.base_model is not None})
    vlms = sorted({arm.vlm for arm in inputs.arms() if arm.vlm is not None})
    return {
        "Arms": format_any(len(inputs.arms())),
        "Base models": ", ".join(bases),
        "Captions by": ", ".join(vlms),
        "Source": str(inputs.preprocess.manifest["config"]["source"]["name"]),
        "Seed": str(seed),
        "First stage started": started[0][:16].replace("T", " "),
        "All stages took": format_seconds(sum(manifest["seconds"] for manifest in manifests)),
        "Machine": "; ".join(sorted(machines)),
    }


def format_machine(machine: Any) -> str:
    """Write a machine in words, whatever the manifest keeps of it."""
    if not isinstance(machine, Mapping):
        return str(machine)
    words = [
        machine.get("gpu"),
        machine.get("cpu"),
        f"{machine['cores']} cores" if machine.get("cores") else None,
        f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else None,
    ]
    return ", ".join(str(word) for word in words if word) or format_any(machine)


def read_versions(inputs: ReportInputs) -> dict[str, str]:
    """Merge library versions over all stages; where stages differ, both are printed."""
    merged: dict[str, set[str]] = {}
    for _, manifest in inputs.stages():
        for name, version in manifest["versions"].items():
            merged.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(merged.items())}


def read_methods(inputs: ReportInputs) -> tuple[tuple[str, str], ...]:
    """Collect each stage's methods sentence once."""
    sentences: dict[tuple[str, str], None] = {}
    for _, manifest in inputs.stages():
        sentence = manifest["notes"].get("methods")
        if sentence:
            sentences[format_key(manifest["stage"]), " ".join(str(sentence).split())] = None
    notes = inputs.evaluate.manifest["notes"]
    legend, citations = Legend.of(notes), notes.get("metrics") or {}
    return (*sentences, *((legend.name(name), str(text)) for name, text in citations.items()))


def read_warnings(inputs: ReportInputs) -> tuple[str, ...]:
    """Collect what preprocess, evaluate and classify warned of."""
    warnings = [
        w
        for a in (inputs.preprocess, inputs.evaluate, inputs.classify)
        for w in a.manifest["notes"].get("warnings", ())
    ]
    return tuple(str(warning) for warning in dict.fromkeys(warnings))


def read_settings(inputs: ReportInputs) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """Lay out settings, counts and notes of every artifact, with the digest of its config."""
    return tuple(
        (
            f"{format_key(manifest['stage'])}: {arms} (config {manifest['config_digest'][:12]})",
            (("Settings", table_settings(manifest["config"])), *list_notes(manifest)),
        )
        for arms, manifest in inputs.stages()
    )
