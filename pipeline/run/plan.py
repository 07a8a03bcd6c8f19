"""Plan of an experiment: which work there is, what it is made from, and what of it is done.

`preprocess` -> `caption` (per distinct caption settings) -> `finetune` (per arm) -> `generate` (per
arm, and per distinct base model without adapter, named `base/NAME`) -> `evaluate` and `classify`
(one each, over all arms) -> `report`. Work that two arms share is one node, because a node is known
by the digest of what makes it. The sources of `classify.cross_test` are preprocessed too, each in a
node `preprocess [cross_test/NAME]`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import registry
from pipeline.contracts import BASE, SCHEMA_VERSION, PluginConfig, Section
from pipeline.errors import ArtifactError, DataError, MissingWeightsError, UsageError
from pipeline.run import code_digest, manifest
from pipeline.run.config import base_arms
from pipeline.settings import ArmConfig, RunConfig

STAGES = ("preprocess", "caption", "finetune", "generate", "evaluate", "classify", "report")
State = Literal["fresh", "partial", "stale", "missing"]


@dataclass(frozen=True, eq=False)
class Node:
    """One piece of work: a stage with its settings and inputs, and the arms that need it."""

    stage: str
    arm_names: tuple[str, ...]  # arms and base/NAME; () for what all arms share
    config: Section
    inputs: Mapping[str, "Node | Mapping[str, Node] | None"]  # by port
    recipe: Mapping[str, Any]  # what the digest is made of
    source_files: Mapping[str, str]
    digest: str

    @property
    def title(self) -> str:
        """The node in words, e.g. `finetune [sdxl_r16, sdxl_r4]`."""
        return f"{self.stage} [{', '.join(self.arm_names)}]" if self.arm_names else self.stage

    def upstream(self) -> Iterator["Node"]:
        """Yield the nodes that this one reads, each port in turn."""
        for value in self.inputs.values():
            if isinstance(value, Node):
                yield value
            elif value is not None:
                yield from value.values()

    def folder(self, experiment_dir: Path) -> Path:
        """Where the artifact is, or will be."""
        return experiment_dir / self.stage / self.digest[:12]


@dataclass(frozen=True)
class Standing:
    """Whether a node's artifact is there, and if not, why."""

    node: Node
    state: State
    reason: str = ""


def plan(config: RunConfig, arms: Sequence[str] = ()) -> list[Node]:
    """List the nodes of an experiment in an order in which they can run.

    Args:
        config: The experiment.
        arms: Names of the arms to plan for; all when empty.

    Raises:
        UsageError: There is no arm of that name.
    """
    return _Planner(config, _chosen(config, arms)).nodes()


def limit(nodes: Sequence[Node], until: str | None) -> list[Node]:
    """Keep the nodes of stages up to `until`, that stage included.

    Raises:
        UsageError: There is no stage of that name.
    """
    if until is None:
        return list(nodes)
    if until not in STAGES:
        raise UsageError(f"--until: no stage named {until!r}; stages: {', '.join(STAGES)}")
    kept = STAGES[: STAGES.index(until) + 1]
    return [node for node in nodes if node.stage in kept]


def needed_by(targets: Sequence[Node]) -> list[Node]:
    """List everything that the targets are made from, in order, the targets left out."""
    needed: dict[str, Node] = {}
    for target in targets:
        for node in target.upstream():
            for item in [*needed_by([node]), node]:
                needed.setdefault(item.digest, item)
    return list(needed.values())


def standing(node: Node, experiment_dir: Path) -> Standing:
    """Look whether a node is done.

    Fresh: an artifact with this node's digest exists. Partial: a run was stopped midway and can go
    on. Stale: an artifact of the same stage and arm exists, but damaged (files missing or of
    another size) or made from something else.
    """
    folder = node.folder(experiment_dir)
    damage = ""
    if folder.is_dir():
        try:
            made = manifest.read(folder)
        except ArtifactError as error:
            damage = str(error)
        else:
            if made["digest"] == node.digest:
                problems = manifest.verify(folder, made)
                if not problems:
                    return Standing(node, "fresh")
                damage = manifest.summarize(problems)
    if folder.with_name(f"{folder.name}.partial").is_dir():
        return Standing(node, "partial", "stopped midway; a run goes on from there")
    if damage:
        return Standing(node, "stale", damage)
    newest = newest_manifest(node, experiment_dir)
    if newest is None:
        return Standing(node, "missing", "never made")
    return Standing(node, "stale", "; ".join(differences(node, newest)))


def newest_manifest(node: Node, experiment_dir: Path) -> dict[str, Any] | None:
    """Find the latest artifact of the same stage for any of the node's arms."""
    candidates = []
    for path in sorted((experiment_dir / node.stage).glob(f"*/{manifest.NAME}")):
        if path.parent.suffix == ".partial":
            continue
        try:
            candidate = manifest.read(path.parent)
        except ArtifactError:
            continue  # not one that anything could be made from, so not one to compare with
        arms = set(candidate["arm_names"])
        if not node.arm_names or arms & set(node.arm_names):
            candidates.append(candidate)
    return max(candidates, key=lambda item: str(item["started"]), default=None)


def differences(node: Node, made: Mapping[str, Any]) -> Iterator[str]:
    """Say what a node would be made from now that an artifact was not made from."""
    for key in ("seed", "dtype"):
        if made[key] != node.recipe[key]:
            yield f"{key} {made[key]} -> {node.recipe[key]}"
    yield from config_differences(made["config"], node.recipe["config"])
    inputs: Mapping[str, str] = node.recipe["inputs"]
    ports = [
        port
        for port in sorted(set(inputs) | set(made["inputs"]))
        if made["inputs"].get(port) != inputs.get(port)
    ]
    if len(ports) > 2:
        yield f"inputs changed: {', '.join(ports)}"
    else:
        for port in ports:
            yield f"input {port} {_short(made['inputs'].get(port))} -> {_short(inputs.get(port))}"
    if made["source_digest"] != node.recipe["source"]:
        files = made.get("source_files", {})
        changed = [
            path
            for path in sorted(set(files) | set(node.source_files))
            if files.get(path) != node.source_files.get(path)
        ]
        yield f"code changed: {', '.join(changed)}"


def config_differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield one line for each setting that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(set(before) | set(now)):
            inner = f"{place}.{key}" if place else key
            yield from config_differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{place} {before!r} -> {now!r}"


def _short(digest: str | None) -> str:
    return f"{digest[:8]}…" if digest else "none"


def _chosen(config: RunConfig, names: Sequence[str]) -> list[ArmConfig]:
    known = [arm.name for arm in config.arms]
    for name in names:
        if name not in known:
            raise UsageError(f"--arm: no arm named {name!r}; arms: {', '.join(known)}")
    return [arm for arm in config.arms if not names or arm.name in names]


class _Planner:
    """Makes nodes, each once, and remembers which arms share them."""

    def __init__(self, config: RunConfig, arms: Sequence[ArmConfig]) -> None:
        self.config = config
        self.arms = arms
        self.plugin_digests: dict[str, str | None] = {}

    def nodes(self) -> list[Node]:
        """Build the whole plan."""
        preprocess = self._node("preprocess", (), self.config.preprocess, {})
        captions = self._shared(
            "caption", {arm.name: (arm.caption, {"preprocess": preprocess}) for arm in self.arms}
        )
        finetunes = self._shared(
            "finetune",
            {
                arm.name: (
                    arm.finetune,
                    {"preprocess": preprocess, "caption": captions[arm.name]},
                )
                for arm in self.arms
            },
        )
        generates = self._shared(
            "generate", dict(self._generate_work(preprocess, captions, finetunes))
        )
        of_arms = {arm.name: generates[arm.name] for arm in self.arms}
        evaluate_config = self.config.evaluate.model_copy(
            update={"base_models": {name: arm.base_model for name, arm in self._bases().items()}}
        )
        evaluate = self._node(
            "evaluate", (), evaluate_config, {"preprocess": preprocess, "generate": generates}
        )
        elsewhere = {
            name: self._node("preprocess", (f"cross_test/{name}",), section, {})
            for name, section in self.config.classify.cross_test.items()
        }
        classify = self._node(
            "classify",
            (),
            self.config.classify,
            {"preprocess": preprocess, "generate": of_arms, "cross_test": elsewhere},
        )
        inputs = {
            "preprocess": preprocess,
            "caption": captions,
            "finetune": finetunes,
            "generate": generates,
            "evaluate": evaluate,
            "classify": classify,
        }
        report = self._node("report", (), self.config.report, inputs)
        many = [*captions.values(), *finetunes.values(), *generates.values()]
        first = [preprocess, *elsewhere.values()]
        unique = {node.digest: node for node in [*first, *many, evaluate, classify, report]}
        return list(unique.values())

    def _bases(self) -> dict[str, ArmConfig]:
        return base_arms(self.arms)

    def _generate_work(
        self, preprocess: Node, captions: Mapping[str, Node], finetunes: Mapping[str, Node]
    ) -> Iterator[tuple[str, tuple[Section, dict[str, Any]]]]:
        """Yield what each arm generates, and each base model without an adapter."""
        work = [(arm.name, arm, finetunes[arm.name]) for arm in self.arms]
        bases = [(f"{BASE}{name}", arm, None) for name, arm in self._bases().items()]
        for name, arm, finetune in [*work, *bases]:
            config = arm.generate
            reads_captions = "test_captions" in config.prompts_from
            needs_captions = reads_captions or config.grid_sizes == "trained"
            caption = captions[arm.name] if needs_captions else None
            slices = preprocess if config.withhold_copies else None
            inputs = {"finetune": finetune, "caption": caption, "preprocess": slices}
            yield name, (config, inputs)

    def _shared(
        self, stage: str, work: Mapping[str, tuple[Section, dict[str, Any]]]
    ) -> dict[str, Node]:
        """Make one node for equal work, under the names of all arms that share it."""
        first = {name: self._node(stage, (name,), *item) for name, item in work.items()}
        names: dict[str, list[str]] = {}
        for name, node in first.items():
            names.setdefault(node.digest, []).append(name)
        merged = {
            digest: replace(first[arms[0]], arm_names=tuple(arms)) for digest, arms in names.items()
        }
        return {name: merged[node.digest] for name, node in first.items()}

    def _node(
        self, stage: str, arm_names: tuple[str, ...], config: Section, inputs: Mapping[str, Any]
    ) -> Node:
        """Make a node and its digest."""
        plugins = registry.plugins_of(stage, config)
        modules = [f"{package}.{plugin.name}" for package, plugin in plugins]
        files = code_digest.source_files(stage, modules)
        recipe = {
            "schema_version": SCHEMA_VERSION,
            "stage": stage,
            "config": config.model_dump(mode="json"),
            "seed": self.config.seed,
            "dtype": self.config.dtype,
            "inputs": {**_input_digests(inputs), **self._plugin_inputs(plugins)},
            "source": manifest.digest_of(files),
        }
        return Node(stage, arm_names, config, inputs, recipe, files, manifest.digest_of(recipe))

    def _plugin_inputs(self, plugins: Sequence[tuple[str, PluginConfig]]) -> dict[str, str]:
        """Ask plug-ins that read files of their own (weights, captions) for those files' digest."""
        digests: dict[str, str] = {}
        for package, plugin in plugins:
            key = f"{package.rpartition('.')[2]}:{manifest.canonical(plugin.model_dump())}"
            if key not in self.plugin_digests:
                self.plugin_digests[key] = plugin_input_digest(package, plugin)
            digest = self.plugin_digests[key]
            if digest is not None:
                digests[f"{package.rpartition('.')[2]}:{plugin.name}"] = digest
        return digests


def plugin_input_digest(package: str, plugin: PluginConfig) -> str | None:
    """Digest of the files a plug-in reads by itself; None if it reads none, "absent" without them.

    A plan can be made before the files are there; `check` names them, and a run refuses to start.
    """
    module = registry.find(package, plugin.name)
    if not hasattr(module, "input_digest"):
        return None
    try:
        return str(module.input_digest(module.Settings.model_validate(plugin.settings)))
    except (FileNotFoundError, DataError, MissingWeightsError):
        return "absent"


def _input_digests(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Flatten ports to `port` or `port/arm` -> digest."""
    flat: dict[str, str] = {}
    for port, value in inputs.items():
        if isinstance(value, Node):
            flat[port] = value.digest
        elif value is not None:
            flat.update({f"{port}/{name}": node.digest for name, node in value.items()})
    return flat
