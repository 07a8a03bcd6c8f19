"""From the run's artifacts to what the page prints; nothing is computed, only read and laid out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipeline.contracts import (
    ALL,
    BASE,
    LABELS,
    NOISE,
    REAL,
    VAE,
    Artifact,
    CaptionRecord,
    CheckpointRecord,
    Part,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    read_parts,
)
from stages.components.report.arms import Arm, Manifest, read_arm
from stages.components.report.charts import Bar, Curve, Kind
from stages.components.report.copies import CopyFacts, describe_pairs, draw_pairs
from stages.components.report.evidence import Difference, Findings, read_differences
from stages.components.report.grid import Block, Cell, pick_evenly
from stages.components.report.numbers import Legend, format_any, format_key, format_seconds
from stages.components.report.page import Confusion, GridBlock, Picture
from stages.components.report.tables import Panel, list_notes, table_settings

STAGE_ORDER = ("preprocess", "caption", "finetune", "generate", "evaluate", "classify")
KINDS: tuple[Kind, ...] = ("arm", "base", "vae")
EDGES = (REAL, NOISE)  # the floor and the ceiling
MAX_POINTS = 400  # of a curve; more would only make the page heavy
TRAIN_LOG = "train_log.jsonl"
SAMPLES = "samples"  # folder of the grids that were sampled while training
MAX_GRID_PX = 640
REAL_BLOCK = "real test slices"


@dataclass(frozen=True)
class Run:
    """The artifacts of one run, as the report stage receives them."""

    preprocess: Artifact[SliceRecord]
    caption: Mapping[str, Artifact[CaptionRecord]]
    finetune: Mapping[str, Artifact[CheckpointRecord]]
    generate: Mapping[str, Artifact[SyntheticRecord]]  # arms and base/NAME
    evaluate: Artifact[ScoreRecord]
    classify: Artifact[ScoreRecord]

    def stages(self) -> list[tuple[str, Manifest]]:
        """List (arms, manifest) of every artifact once, in running order."""
        found: dict[str, tuple[list[str], Manifest]] = {}
        artifacts: list[tuple[str, Artifact[Any]]] = [
            (ALL, self.preprocess),
            *self.caption.items(),
            *self.finetune.items(),
            *self.generate.items(),
            (ALL, self.evaluate),
            (ALL, self.classify),
        ]
        for arm, artifact in artifacts:
            arms, _ = found.setdefault(artifact.digest, ([], artifact.manifest))
            if arm not in arms:
                arms.append(arm)
        rows = [(", ".join(arms), manifest) for arms, manifest in found.values()]
        return sorted(rows, key=lambda row: STAGE_ORDER.index(row[1]["stage"]))

    def arms(self) -> tuple[Arm, ...]:
        """Read every arm's facts; base models without LoRA are no arms."""
        return tuple(
            read_arm(
                name,
                caption=_manifest(self.caption.get(name)),
                finetune=_manifest(self.finetune.get(name)),
                generate=artifact.manifest,
            )
            for name, artifact in self.generate.items()
            if not is_base(name)
        )

    def other_parts(self) -> list[Part]:
        """List what else the stages used that has terms: networks, refiners, who read again."""
        known = {"base_model", "base_models", "vlm", "tokenizer"}  # of the arms
        return [
            part
            for _, manifest in self.stages()
            for field in (manifest.get("parts") or {})
            if field not in known
            for part in read_parts(manifest, field)
        ]


def read_findings(run: Run, scores: Sequence[ScoreRecord]) -> tuple[Findings, tuple[str, ...]]:
    """Gather what the claims rest on, and say which optional notes are missing."""
    differences: list[Difference] = []
    missing = []
    for artifact in (run.evaluate, run.classify):
        recorded = read_differences(artifact.manifest["notes"])
        if not recorded:
            stage = artifact.manifest["stage"]
            missing.append(f"{stage} recorded no differences between arms, so claims lack them.")
        else:
            differences += recorded
    findings = Findings(
        arms=run.arms(),
        scores=tuple(scores),
        differences=tuple(differences),
        features=name_deciding_features(run),
    )
    return findings, tuple(missing)


def name_deciding_features(run: Run) -> str | None:
    """Name the extractor that claims rest on: the first that evaluate was given."""
    extractors = run.evaluate.manifest["config"].get("features") or ()
    return next((str(plugin["name"]) for plugin in extractors), None)


def read_facts(run: Run, *, seed: int) -> dict[str, str]:
    """Say what was run, when, on what and for how long, from the manifests."""
    manifests = [manifest for _, manifest in run.stages()]
    started = sorted(str(manifest["started"]) for manifest in manifests)
    machines = {format_machine(manifest["machine"]) for manifest in manifests}
    bases = sorted({arm.base_model for arm in run.arms() if arm.base_model is not None})
    vlms = sorted({arm.vlm for arm in run.arms() if arm.vlm is not None})
    return {
        "Arms": format_any(len(run.arms())),
        "Base models": ", ".join(bases),
        "Captions by": ", ".join(vlms),
        "Source": str(run.preprocess.manifest["config"]["source"]["name"]),
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


def read_versions(run: Run) -> dict[str, str]:
    """Merge library versions over all stages; where stages differ, both are printed."""
    found: dict[str, set[str]] = {}
    for _, manifest in run.stages():
        for name, version in manifest["versions"].items():
            found.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}


def read_methods(run: Run) -> tuple[tuple[str, str], ...]:
    """Collect each stage's methods sentence once."""
    sentences: dict[tuple[str, str], None] = {}
    for _, manifest in run.stages():
        sentence = manifest["notes"].get("methods")
        if sentence:
            sentences[format_key(manifest["stage"]), " ".join(str(sentence).split())] = None
    notes = run.evaluate.manifest["notes"]
    legend, citations = Legend.of(notes), notes.get("metrics") or {}
    return (*sentences, *((legend.name(name), str(text)) for name, text in citations.items()))


def read_warnings(run: Run) -> tuple[str, ...]:
    """Collect what evaluate and classify warned of."""
    found = [
        w for a in (run.evaluate, run.classify) for w in a.manifest["notes"].get("warnings", ())
    ]
    return tuple(str(warning) for warning in dict.fromkeys(found))


def read_blocks(run: Run, images_per_class: int) -> list[Block]:
    """Choose the slices of the grid: the real test slices first, then every arm, then bases."""
    real = [record for record in run.preprocess.records() if record.split == "test"]
    columns = {
        label: tuple(
            Cell(run.preprocess.path(record.image_path), record.slice_id, "")
            for record in pick_evenly([r for r in real if r.label == label], images_per_class)
        )
        for label in LABELS
    }
    blocks = [Block(REAL_BLOCK, is_synthetic=False, columns=columns)]
    for name, artifact in run.generate.items():
        records = [r for r in artifact.records() if r.counterfactual_of is None]
        columns = {
            label: tuple(
                Cell(artifact.path(record.image_path), record.image_id, record.prompt)
                for record in pick_evenly(
                    [r for r in records if r.label == label], images_per_class
                )
            )
            for label in LABELS
        }
        blocks.append(Block(name, is_synthetic=True, columns=columns))
    return blocks


def lay_out_block(block: Block, picture: Picture) -> GridBlock:
    """Put the prompts of a block beside its picture."""
    prompts = tuple(
        (label, tuple(cell.text for cell in block.columns[label])) for label in block.labels
    )
    name = block.name.removeprefix(BASE) + ", no LoRA" if is_base(block.name) else block.name
    return GridBlock(name, picture, block.labels, prompts if block.is_synthetic else ())


def describe_block(block: Block) -> str:
    """Say in words what a block of the grid shows."""
    kind = "synthetic slices" if block.is_synthetic else "real slices"
    return f"{kind} of {block.name}, one column each for {', '.join(block.labels)}"


def share_prompts(blocks: Sequence[GridBlock]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the prompts of the synthetic blocks where they are the same in all, else nothing."""
    distinct = {block.prompts for block in blocks if block.prompts}
    return distinct.pop() if len(distinct) == 1 else ()


def read_bars(scores: Sequence[ScoreRecord]) -> list[Bar]:
    """Turn the scores of arms, bases and VAE rows into chart rows, arms first."""
    return [
        Bar(score.arm, _kind(score.arm), score.value, score.low, score.high)
        for score in sort_by_kind(scores)
        if score.arm not in EDGES
    ]


def sort_by_kind(scores: Iterable[ScoreRecord]) -> list[ScoreRecord]:
    """Sort scores: arms first, then base models, VAE rows, the floor and the ceiling; stable."""

    def rank(score: ScoreRecord) -> int:
        if score.arm in EDGES:
            return len(KINDS) + EDGES.index(score.arm)
        return KINDS.index(_kind(score.arm))

    return sorted(scores, key=rank)


def read_edge(scores: Iterable[ScoreRecord], arm: str, text: str) -> tuple[float, str] | None:
    """Find the floor ("real") or the ceiling ("noise") of a chart."""
    for score in scores:
        if score.arm == arm:
            return score.value, text
    return None


def read_curves(run: Run, key: str) -> list[Curve]:
    """Read one column of every arm's training log, at most `MAX_POINTS` rows of those with it."""
    curves: dict[str, Curve] = {}
    for arm, artifact in run.finetune.items():
        path = artifact.root / TRAIN_LOG
        if artifact.digest in curves or not path.is_file():
            continue
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        known = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        points = tuple(pick_evenly(known, MAX_POINTS))
        if points:
            curves[artifact.digest] = Curve(arm, points)
    return list(curves.values())


def read_sample_grids(run: Run) -> list[tuple[str, int, Image.Image]]:
    """Read the last grid that each training sampled on its way: arm, optimiser step, picture."""
    found: dict[str, tuple[str, int, Image.Image]] = {}
    for arm, artifact in run.finetune.items():
        paths = sorted((artifact.root / SAMPLES).glob("step-*.png"))
        if artifact.digest in found or not paths:
            continue
        with Image.open(paths[-1]) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((MAX_GRID_PX, MAX_GRID_PX))
        found[artifact.digest] = (arm, int(paths[-1].stem.removeprefix("step-")), picture)
    return list(found.values())


def read_caption_manifests(run: Run) -> dict[str, Manifest]:
    """List every distinct caption artifact's manifest, named by its captioner."""
    columns: dict[str, Manifest] = {}
    seen = set()
    vlms = {arm.name: arm.vlm for arm in run.arms()}
    for name, artifact in run.caption.items():
        if artifact.digest in seen:
            continue
        seen.add(artifact.digest)
        vlm = vlms.get(name) or name
        columns[vlm if vlm not in columns else f"{vlm} ({name})"] = artifact.manifest
    return columns


def read_settings(run: Run) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """Lay out settings, counts and notes of every artifact, with the digest of its config."""
    return tuple(
        (
            f"{format_key(manifest['stage'])}: {arms} (config {manifest['config_digest'][:12]})",
            (("Settings", table_settings(manifest["config"])), *list_notes(manifest)),
        )
        for arms, manifest in run.stages()
    )


def read_confusions(manifest: Manifest, order: Iterable[str]) -> tuple[Confusion, ...]:
    """Read `notes["confusion"]` (arm -> counts of the four outcomes) in the order of the arms."""
    recorded = manifest["notes"].get("confusion") or {}
    ordered = [name for name in order if name in recorded]
    return tuple(
        Confusion(
            name=name,
            true_positive=counts["true_positive"],
            false_negative=counts["false_negative"],
            false_positive=counts["false_positive"],
            true_negative=counts["true_negative"],
        )
        for name, counts in ((name, recorded[name]) for name in ordered)
    )


def read_closest(run: Run, facts: CopyFacts) -> list[tuple[str, Image.Image, str]]:
    """Compose each arm's closest pairs: its name, the picture and a caption."""
    train = {r.slice_id: run.preprocess.path(r.image_path) for r in run.preprocess.records()}
    drawn = []
    for arm, pairs in facts.closest.items():
        artifact = run.generate[arm]
        images = {r.image_id: artifact.path(r.image_path) for r in artifact.records()}
        paths = [(images[pair.image], train[pair.train]) for pair in pairs]
        drawn.append((arm, draw_pairs(paths), describe_pairs(arm, pairs)))
    return drawn


def is_base(arm: str) -> bool:
    """Tell whether an arm is a base model without LoRA."""
    return arm.startswith(BASE)


def _kind(arm: str) -> Kind:
    if is_base(arm):
        return "base"
    return "vae" if arm.startswith(VAE) else "arm"


def _manifest(artifact: Artifact[Any] | None) -> Manifest | None:
    return None if artifact is None else artifact.manifest
