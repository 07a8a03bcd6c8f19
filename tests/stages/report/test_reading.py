"""Reading manifests: arms, differences, tables, numbers, limits and licences."""

import pytest

from pipeline import registry
from pipeline.contracts import Licence, Part, PluginConfig, ScoreStyle
from stages.report import notices
from stages.report.arms import Arm, flatten, name_family, read_arm
from stages.report.claims.evidence import Difference, read_differences
from stages.report.facts import format_machine
from stages.report.numbers import Legend, format_any, format_interval, format_seconds, format_value
from stages.report.tables import (
    list_notes,
    list_notes_side_by_side,
    table_nested,
    table_unequal_settings,
)


def _plugin(name, **settings):
    return {"name": name, "settings": settings}


def test_arm_is_read_from_manifests():
    arm = read_arm(
        "a",
        caption={
            "config": {"vlm": _plugin("precomputed", path="data/captions/llava_med.jsonl")},
            "parts": {"vlm": [{"name": "llava_med", "study": "llava_med"}]},
        },
        finetune={
            "config": {
                "base_model": _plugin("tiny_sdxl"),
                "lora_rank": 8,
                "train_text_encoder": True,
            }
        },
        generate={"config": {"num_images": 12}},
    )
    facts = (arm.base_model, arm.family, arm.vlm, arm.lora_rank, arm.train_text_encoder)
    assert facts == ("tiny_sdxl", "sdxl", "llava_med", 8, True)
    assert arm.study == "llava_med"
    assert arm.settings["caption.vlm.settings.path"] == "data/captions/llava_med.jsonl"
    assert arm.settings["generate.num_images"] == 12


def test_arm_without_manifests_claims_nothing():
    arm = read_arm("a", caption=None, finetune=None, generate=None)
    assert arm == Arm("a", None, None, None, None, None)


@pytest.mark.parametrize(
    ("base", "family"),
    [("sd15", "sd15"), ("tiny_sd15", "sd15"), ("sdxl", "sdxl"), ("sd3", None), (None, None)],
)
def test_family_ignores_size(base, family):
    assert name_family(base) == family


def test_unequal_settings_leave_out_whole_sections():
    first = Arm("a", None, None, None, None, None, {"x.vlm.name": 1, "x.style": 2, "x.vlms": 3})
    second = Arm("b", None, None, None, None, None, {"x.vlm.name": 9, "x.style": 2, "x.vlms": 9})
    assert first.unequal_settings(second, apart_from=("x.vlm",)) == ["x.vlms"]
    table = table_unequal_settings((first, second))
    assert table.rows == (("x.vlm.name", "1", "9"), ("x.vlms", "3", "9"))


def test_differences_are_read_singly_and_in_lists():
    row = {"metric": "kid", "value": -1.0, "low": -2.0, "high": -0.5}
    notes = {"differences": {"a - b": row, "a - c-d": [row, {**row, "features": "f"}]}}
    found = read_differences(notes)
    assert found is not None
    assert found[0] == Difference("a", "b", "kid", -1.0, -2.0, -0.5)
    assert [(d.first, d.second, d.features) for d in found[1:]] == [
        ("a", "c-d", None),
        ("a", "c-d", "f"),
    ]
    assert found[0].turned() == Difference("b", "a", "kid", 1.0, 0.5, 2.0)
    assert read_differences({}) is None


def test_flatten_keeps_names_with_dots():
    assert flatten({"a": {"0.5": 1}, "b": {}}) == {("a", "0.5"): 1, ("b",): {}}


def test_nested_counts_become_columns():
    table = table_nested({"train": {"glioma": {"axial": 2}, "notumor": {"coronal": 1}}})
    assert table.head == ("", "axial", "coronal")
    assert table.rows == (("Train · glioma", "2", "–"), ("Train · notumor", "–", "1"))


def test_notes_with_their_own_place_are_left_out():
    manifest = {
        "counts": {"slices": 7},
        "notes": {"methods": "m", "differences": {}, "slices": {"train": 6}, "empty": {}},
    }
    assert [name for name, _ in list_notes(manifest)] == ["Counts", "Slices"]
    assert list_notes({"counts": {}, "notes": {}}) == ()


def test_side_by_side_shows_what_one_lacks():
    panels = dict(
        list_notes_side_by_side(
            {
                "ovis": {"counts": {"failed": 2}, "notes": {"failed": {"too long": 2}}},
                "gemma": {"counts": {"failed": 0}, "notes": {"failed": {}}},
            }
        )
    )
    assert panels["Counts"].rows == (("Failed", "2", "0"),)
    assert panels["Failed"].rows == (("Too long", "2", "–"),)
    assert list_notes_side_by_side({}) == ()


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (-0.01234, ScoreStyle(digits=4), "−0.0123"),
        (154.236, ScoreStyle(), "154.24"),
        (5.8, ScoreStyle(), "5.800"),
        (0.953, Legend({})["accuracy"], "95.3"),
        (None, ScoreStyle(digits=4), "–"),
    ],
)
def test_values(value, style, text):
    assert format_value(value, style) == text


def test_scores_without_a_style_of_their_own_stand_under_their_key():
    legend = Legend.of({})  # an old artifact
    assert legend.name("some_score") == "Some score"
    assert format_value(0.25, legend["some_score"]) == "0.250"


def test_interval_without_bounds():
    assert format_interval(None, None, ScoreStyle(digits=4)) == "–"
    assert format_interval(-0.01, 0.02, ScoreStyle(digits=4)) == "−0.0100 to 0.0200"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.48214, "0.4821"),
        ({"a": 1, "b": False}, "a: 1, b: no"),
        ([], "–"),
        (list(range(14)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 … (14 in all)"),
    ],
)
def test_any_value(value, text):
    assert format_any(value) == text


def test_durations():
    assert [format_seconds(s) for s in (None, 0.41, 61, 7384)] == [
        "–",
        "0.4 s",
        "1 min 1 s",
        "2 h 3 min",
    ]


def test_machine_in_any_form():
    assert format_machine("a laptop") == "a laptop"
    assert format_machine({"cpu": "X", "gpu": "2 x H200", "cores": 4}) == "2 x H200, X, 4 cores"


def _arm(base, vlm, **settings):
    return Arm(
        "a",
        base,
        name_family(base),
        vlm,
        8,
        False,
        base=registry.identify(registry.BASE_MODELS, PluginConfig(name=base)),
        captioner=registry.identify(registry.VLMS, PluginConfig(name=vlm, settings=settings)),
    )


def test_limits_name_what_was_used():
    phantoms = registry.identify(registry.SOURCES, PluginConfig(name="phantom"))
    limits = str(
        notices.list_limits(
            arms=[_arm("tiny_sdxl", "ovis2")],
            source=phantoms,
            features="efficientnet_lite0",
            has_subjects=False,
        )
    )
    for words in ("tiny_sdxl", "computed phantoms", "efficientnet_lite0", "names no subjects"):
        assert words in limits
    large = str(
        notices.list_limits(
            arms=[_arm("sdxl", "truth")],
            source=Part(name="dicom"),
            features="inception",
            has_subjects=True,
        )
    )
    for words in ("few million parameters", "phantoms", "efficientnet", "names no subjects"):
        assert words not in large


def test_licences_are_of_parts_in_use():
    parts = [it.part for it in notices.list_licences([_arm("tiny_sdxl", "truth")])]
    assert parts == ["mrisynth", "tiny_sdxl"]
    large = [
        _arm("sdxl", "gemini"),
        _arm("sd15", "precomputed", path="captions/llava_med.jsonl"),
        _arm("sd15", "gemma3", model="google/gemma-3-12b-it"),
    ]
    listed = notices.list_licences(large, [Part(name="x", licence=Licence(part="X", terms="Y"))])
    assert [it.part for it in listed] == [
        "mrisynth",
        *("Stable Diffusion 1.5", "Stable Diffusion XL 1.0"),
        *("Gemini", "Gemma 3", "LLaVA-Med 1.5", "X"),
    ]
    assert "images leave the machine" in " ".join(it.terms for it in listed)
    assert sum("medical advice" in it.terms for it in listed) == 2


@pytest.mark.parametrize(
    ("plugin", "name"), [("llava", "LLaVA"), ("gemma3", "Gemma 3"), ("ovis2", "Ovis2")]
)
def test_embedded_captioners_are_not_called_after_the_large_ones(plugin, name):
    arm = _arm("tiny_sd15", plugin)
    shown = f"tiny {name} (embedded)"
    assert arm.captioner.name == shown
    assert arm.study is None  # and so no claim about the study's is decided by them
    terms = {it.part: it.terms for it in notices.list_licences([arm])}
    assert terms[shown] == "Embedded weights of this project, MIT."
    for large in ("LLaVA-Med 1.5", "Gemma 3", "Ovis2"):
        assert large not in terms
