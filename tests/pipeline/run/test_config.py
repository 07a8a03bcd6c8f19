from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.contracts import Section
from pipeline.errors import ConfigError
from pipeline.run import config
from pipeline.settings import RunConfig

Load = Callable[..., RunConfig]


def faults_of(path: Path, text: str, *overrides: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path, overrides)
    return caught.value.problems


def change(path: Path, **sections: object) -> str:
    """Rewrite the experiment with other top-level values; None removes one."""
    data = yaml.safe_load(path.read_text())
    for key, value in sections.items():
        data.pop(key, None)
        if value is not None:
            data[key] = value
    return yaml.safe_dump(data)


def test_arms_merge_over_the_shared_sections(load: Load) -> None:
    a4, a8, b4 = load().arms
    assert (a4.finetune.lora_rank, a8.finetune.lora_rank, b4.finetune.lora_rank) == (4, 8, 4)
    assert a8.finetune.resolution == 64
    assert [arm.base_model.name for arm in (a4, a8, b4)] == ["tiny_a", "tiny_a", "tiny_b"]


def test_base_model_is_filled_in_wherever_it_is_needed(load: Load) -> None:
    settings = load()
    for arm in settings.arms:
        assert arm.finetune.base_model == arm.generate.base_model == arm.base_model
        assert arm.caption.tokenizer == arm.base_model
    assert list(settings.evaluate.base_models) == ["tiny_a", "tiny_b"]


def test_prompts_are_worded_like_the_captions_of_their_arm(load: Load) -> None:
    run = load("caption.style=sentence", "caption.include_label=true")
    assert {arm.generate.prompt_style for arm in run.arms} == {"sentence"}
    assert {arm.generate.include_label for arm in run.arms} == {True}
    run = load("caption.style=sentence", "generate.prompt_style=label_only")
    assert {arm.generate.prompt_style for arm in run.arms} == {"label_only"}


def test_plugin_defaults_are_filled_in(load: Load) -> None:
    assert load().preprocess.source.settings == {"root": "raw", "num_scans": 2}
    assert load().arms[0].base_model.settings == {"weights": ""}


def test_two_settings_of_one_base_model_get_two_names(experiment_file: Path) -> None:
    arms = [
        {"name": "x"},
        {"name": "y", "base_model": {"name": "tiny_a", "settings": {"weights": "w"}}},
    ]
    experiment_file.write_text(change(experiment_file, arms=arms))
    assert list(config.load(experiment_file).evaluate.base_models) == ["tiny_a", "tiny_a_2"]


def test_without_arms_there_is_one_named_main(experiment_file: Path) -> None:
    experiment_file.write_text(change(experiment_file, arms=None))
    assert [arm.name for arm in config.load(experiment_file).arms] == ["main"]


def test_plugin_of_another_name_takes_none_of_the_settings(experiment_file: Path) -> None:
    shared = {"vlm": {"name": "model", "settings": {"temperature": 0.5}}}
    arms = [
        {"name": "same", "caption": {"vlm": {"name": "model"}}},
        {"name": "other", "caption": {"vlm": {"name": "truth"}}},
    ]
    experiment_file.write_text(change(experiment_file, caption=shared, arms=arms))
    same, other = config.load(experiment_file).arms
    assert same.caption.vlm.settings == {"temperature": 0.5}
    assert other.caption.vlm.settings == {}


def test_dump_reads_back_as_the_same_config(load: Load, tmp_path: Path) -> None:
    settings = load("arms.b4.generate.num_images=12", "caption.vlm=model")
    path = tmp_path / "dumped.yaml"
    path.write_text(config.dump(settings))
    assert config.load(path) == settings


def test_environment_can_be_interpolated(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = experiment_file.read_text().replace(
        "{num_scans: 2}", "{root: '${oc.env:KAGGLE_ROOT,elsewhere}'}"
    )
    experiment_file.write_text(text)
    assert config.load(experiment_file).preprocess.source.settings["root"] == "elsewhere"
    monkeypatch.setenv("KAGGLE_ROOT", "/data/kaggle")
    assert config.load(experiment_file).preprocess.source.settings["root"] == "/data/kaggle"


class TestSet:
    def test_beats_the_file_and_its_arms(self, load: Load) -> None:
        assert [arm.finetune.lora_rank for arm in load("finetune.lora_rank=2").arms] == [2, 2, 2]

    def test_one_arm(self, load: Load) -> None:
        ranks = [arm.finetune.lora_rank for arm in load("arms.a8.finetune.lora_rank=2").arms]
        assert ranks == [4, 2, 4]

    def test_values_are_yaml(self, load: Load) -> None:
        settings = load(
            "finetune.learning_rate=1e-5", "generate.labels=[glioma, notumor]", "seed=3"
        )
        assert settings.arms[0].finetune.learning_rate == 1e-5
        assert settings.arms[0].generate.labels == ("glioma", "notumor")
        assert settings.seed == 3

    def test_plugin_by_name_and_then_a_setting(self, load: Load) -> None:
        settings = load("caption.vlm=model", "caption.vlm.settings.temperature=0.25")
        assert {arm.caption.vlm.settings["temperature"] for arm in settings.arms} == {0.25}

    def test_name_alone_drops_the_other_plugins_settings(self, load: Load) -> None:
        settings = load(
            "caption.vlm={name: model, settings: {temperature: 1}}", "caption.vlm.name=truth"
        )
        assert settings.arms[0].caption.vlm.settings == {}

    def test_base_model_of_every_arm(self, load: Load) -> None:
        assert {arm.base_model.name for arm in load("base_model=tiny_b").arms} == {"tiny_b"}

    @pytest.mark.parametrize(
        ("override", "fault"),
        [
            ("finetune.lora_rank", "--set 'finetune.lora_rank': expected stage.key=value"),
            ("arms.zz.finetune.lora_rank=2", "expected arms.NAME.stage.key; arms: a4, a8, b4"),
            ("evaluate.metrics.0=kid", "--set 'evaluate.metrics.0=kid': evaluate.metrics holds no"),
            ("seed=[1", "--set 'seed=[1': "),
        ],
    )
    def test_faults(self, experiment_file: Path, override: str, fault: str) -> None:
        text = experiment_file.read_text().replace("evaluate: {}", "evaluate: {metrics: [kid]}")
        found = faults_of(experiment_file, text, override)
        assert any(fault in line for line in found), found


def test_all_faults_come_at_once(experiment_file: Path) -> None:
    text = (
        experiment_file.read_text()
        .replace("lora_rank: 4}", "lora_rnak: 4}")
        .replace("num_images: 8,", "num_images: 8, guidance_scale: -3,")
        .replace("seed: 7", "sede: 7")
        .replace("vlm: truth", "vlm: medgema")
    )
    found = faults_of(experiment_file, text)
    assert "finetune.lora_rnak: unknown key; did you mean 'lora_rank'?" in found
    assert "generate.guidance_scale: expected a number >= 1, found -3" in found
    assert "sede: unknown key; did you mean 'seed'?" in found
    unknown = next(line for line in found if line.startswith("caption.vlm:"))
    assert "no VLM named 'medgema'; available: model, truth. Names are the files in" in unknown
    assert len(found) == 4


def test_fault_of_an_arm_is_laid_at_its_door(experiment_file: Path) -> None:
    text = experiment_file.read_text().replace("{lora_rank: 8}", "{lora_rank: 0, resolutoin: 3}")
    found = faults_of(experiment_file, text)
    assert "arms.a8.finetune.lora_rank: expected a number >= 1, found 0" in found
    assert "arms.a8.finetune.resolutoin: unknown key; did you mean 'resolution'?" in found
    assert len(found) == 2


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "num_scans: 2",
            "num_scans: 0",
            "preprocess.source.settings.num_scans: expected a number >= 1, found 0",
        ),
        (
            "num_scans: 2",
            "nun_scans: 2",
            "preprocess.source.settings.nun_scans: unknown key; did you mean 'num_scans'?",
        ),
        (
            "name: folder",
            "name: foldr",
            "preprocess.source: no data source named 'foldr'; did you mean 'folder'?",
        ),
        (
            "image_size: 64}\ncaption",
            "image_size: 60}\ncaption",
            "preprocess.image_size: expected a multiple of 8, found 60",
        ),
        (
            "resolution: 64",
            "resolution: 128",
            "finetune.resolution: expected 64 as in preprocess.image_size, found 128",
        ),
        (
            "generate: {image_size: 64",
            "generate: {image_size: 32",
            "generate.image_size: expected 64 as in preprocess.image_size, found 32",
        ),
        (
            "classify: {image_size: 64",
            "classify: {image_size: 32",
            "classify.image_size: expected 64 as in preprocess.image_size, found 32",
        ),
        (
            "warmup_steps: 2",
            "warmup_steps: 20",
            "finetune.warmup_steps: expected fewer than max_steps (20), found 20",
        ),
        (
            "max_steps: 10",
            "max_steps: 1",
            "classify.warmup_steps: expected fewer than max_steps (1), found 1",
        ),
        (
            "batch_size: 4",
            "batch_size: 9",
            "generate.batch_size: expected at most num_images (8), found 9",
        ),
        (
            "max_steps: 10",
            "num_images: 8, max_steps: 10",
            "classify.batch_size: expected at most num_images (8), found 16",
        ),
        (
            "num_images: 8, batch_size: 4",
            "num_images: 3, batch_size: 1",
            "generate.num_images: expected at least one for each of the 4 labels, found 3",
        ),
        (
            "lora_rank: 4",
            "text_encoder_rank: 4",
            "finetune.text_encoder_rank: only with train_text_encoder: true",
        ),
        (
            "num_images: 8",
            "prompts_from: test_captions, num_images: 8",
            "caption.splits: 'test' is missing, which generate.prompts_from test_captions needs",
        ),
        (
            "vlm: truth",
            "vlm: truth, splits: [train]",
            "caption.splits: 'val' is missing, which finetune needs",
        ),
        (
            "evaluate: {}",
            "evaluate: {features: []}",
            "evaluate.features: expected at least one feature extractor, found none",
        ),
        (
            "evaluate: {}",
            "evaluate: {metrics: [kdi]}",
            "evaluate.metrics: no metric named 'kdi'; did you mean 'kid'?",
        ),
        ("evaluate: {}", "evaluate: {metrics: [kid, kid]}", "evaluate.metrics: 'kid' stands twice"),
        (
            "evaluate: {}",
            "evaluate: {base_models: {x: {name: tiny_a}}}",
            "evaluate.base_models: filled from the arms; leave it out",
        ),
        (
            "image_size: 64}\ncaption",
            "image_size: 64, val_fraction: 0.5, test_fraction: 0.5}\ncaption",
            "preprocess.val_fraction: expected val_fraction + test_fraction < 1, found 1",
        ),
        (
            "base_model: tiny_a",
            "base_model: {nam: tiny_a}",
            "base_model.nam: unknown key; did you mean 'name'?",
        ),
        ("base_model: tiny_a", "", "base_model: required, but not given"),
        (
            "base_model: tiny_b",
            "base_model: tiny_c",
            "arms.b4.base_model: no base model named 'tiny_c'; did you mean",
        ),
        ("name: a8", "name: a4", "arms.1.name: 'a4' is another arm's name too"),
        ("name: a8", "name: A4", "arms.1.name: 'A4' is another arm's name too"),
        *(
            (
                "name: a8",
                f"name: {name}",
                "arms.1.name: expected letters, digits and '._+-', a letter or digit first, at "
                f"most 64 in all, found {found}",
            )
            for name, found in {
                "base/x": "'base/x'",
                "a - b": "'a - b'",
                r'"a\e[2Jb"': r"'a\x1b[2Jb'",
                "n" * 65: repr("n" * 65),
                "no": "False; put it in quotes",
                "3": "3; put it in quotes",
            }.items()
        ),
        *(
            ("name: a8", f"name: {name}", f"arms.1.name: {name!r} is kept for the scores' own rows")
            for name in ("real", "test", "Train", "all_real", "chance", "all", "synthetic")
        ),
        (
            "    finetune: {lora_rank: 8}",
            "    evaluate: {}",
            "arms.a8.evaluate: unknown key; known: base_model, caption, finetune, generate, name",
        ),
        (
            "lora_rank: 8",
            "base_model: tiny_b",
            "arms.a8.finetune.base_model: set base_model of the arm instead",
        ),
        ("experiment: trial", "experiment: My Trial", "experiment: string should match pattern"),
        ("experiment: trial", "", "experiment: required, but not given"),
        ("seed: 7", "dtype: float16", "dtype: expected 'float32' or 'bfloat16', found 'float16'"),
        ("seed: 7", "device: gpu", "device: expected 'cpu', 'cuda' or 'cuda:N', found 'gpu'"),
        ("caption: {vlm: truth}", "caption: 3", "caption: expected a valid dictionary"),
        ("vlm: truth", "style: structured", "caption.vlm: required, but not given"),
        (
            "vlm: truth",
            "vlm: truth, sources: {foldr: {allow_upload: true}}",
            "caption.sources.foldr: no data source named 'foldr'; did you mean 'folder'?",
        ),
        (
            "vlm: truth",
            "vlm: truth, sources: {folder: {alow_upload: true}}",
            "caption.sources.folder.alow_upload: unknown key; did you mean 'allow_upload'?",
        ),
        ("report: {}", "report: {title: 3}", "report.title: expected a valid string, found 3"),
    ],
)
def test_each_fault_in_words(experiment_file: Path, old: str, new: str, fault: str) -> None:
    text = experiment_file.read_text()
    assert old in text
    found = faults_of(experiment_file, text.replace(old, new, 1))
    assert any(line.startswith(fault) for line in found), found


def test_plugin_without_settings_takes_none(experiment_file: Path) -> None:
    text = experiment_file.read_text().replace(
        "classify: {", "classify: {model: {name: metadata_only, settings: {depth: 3}}, "
    )
    found = faults_of(experiment_file, text)
    assert found == ["classify.model.settings.depth: metadata_only takes none"]


def test_arms_must_be_a_list(experiment_file: Path) -> None:
    found = faults_of(experiment_file, change(experiment_file, arms={"a": 1}))
    assert found == ["arms: expected a list of mappings, found {'a': 1}"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "expected a mapping of sections, found none"),
        ("- a\n- b\n", "expected a mapping of sections, found none"),
        ("a: [1\n", "line 2"),
        ("seed: ${nowhere}", "nowhere"),
        ("seed: 1\nseed: 2\n", "duplicate key seed"),
        ("5\n", "expected a mapping of sections, found one value"),
        ("trial\n", "expected a mapping of sections, found none"),
        ("seed: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("seed: ${oc.env:MRISYNTH_TEST}", "'MRISYNTH_TEST' is not set or empty"),
    ],
)
def test_unreadable_file(experiment_file: Path, text: str, fault: str) -> None:
    found = faults_of(experiment_file, text)
    assert len(found) == 1
    assert fault in found[0]


def test_a_variable_that_is_empty_is_not_set(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = change(experiment_file, experiment="${oc.env:MRISYNTH_TEST,fallback}")
    experiment_file.write_text(text)
    for value, name in (("", "fallback"), ("given", "given")):
        monkeypatch.setenv("MRISYNTH_TEST", value)
        assert config.load(experiment_file).experiment == name


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("max_steps: 20", "max_steps: true", "finetune.max_steps: expected a number, found true"),
        ("seed: 7", "seed: yes", "seed: expected a number, found true"),
        (
            "lora_rank: 4",
            "lora_rank: 4, learning_rate: .inf",
            "finetune.learning_rate: expected a finite number, found inf",
        ),
        (
            "lora_rank: 4",
            "lora_rank: 4, weight_decay: .nan",
            "finetune.weight_decay: expected a finite number, found nan",
        ),
        (
            "num_scans: 2",
            "num_scans: true",
            "preprocess.source.settings.num_scans: expected a number, found true",
        ),
        (
            "caption: {",
            "caption: {sources: {no: {}}, ",
            "caption.sources.false: YAML reads no, off and false as false; put it in quotes",
        ),
        ("report: {}", "report: {}\non: 1", "true: YAML reads yes, on and true as true; put it in"),
        ("report: {}", "report: {}\n3: 1", "3: unknown key; known: arms, base_model, caption"),
    ],
)
def test_values_that_yaml_reads_otherwise(
    experiment_file: Path, old: str, new: str, fault: str
) -> None:
    text = experiment_file.read_text()
    assert old in text
    found = faults_of(experiment_file, text.replace(old, new, 1))
    assert any(line.startswith(fault) for line in found), found


def test_set_takes_no_deep_or_bool_keys(experiment_file: Path) -> None:
    text = experiment_file.read_text()
    (deep,) = faults_of(experiment_file, text, "seed=" + "[" * 3000 + "]" * 3000)
    assert deep.endswith("nested too deeply")
    assert len(deep) < 200
    (key,) = faults_of(experiment_file, text, "caption.sources={off: {}}")
    assert key.startswith("--set.value.false: YAML reads no, off and false as false")


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml\n  no such file"):
        config.load(tmp_path / "nowhere.yaml")


def test_paths_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Settings(Section):
        root: Path
        mask: Path | None = None
        title: str = ""

    monkeypatch.setenv("HOME", str(tmp_path))
    read = Settings.model_validate({"root": "~/scans", "mask": "~", "title": "~/plain text"})
    assert (read.root, read.mask) == (tmp_path / "scans", tmp_path)
    assert read.title == "~/plain text"
