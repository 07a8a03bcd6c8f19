import os
from pathlib import Path

import pytest

from tests.benchmarks import harness


def test_a_section_is_renewed_and_the_others_stay() -> None:
    text = "# Speed\n\n<!-- a -->\nold\n<!-- end a -->\n\n<!-- b -->\nkept\n<!-- end b -->\n"
    found = harness.renew(text, "a", ["new \\1"])
    assert found == text.replace("old", "new \\1")
    assert harness.renew(found, "c", ["more"]) == found + "\n<!-- c -->\nmore\n<!-- end c -->\n"


def test_every_section_of_the_file_can_be_renewed() -> None:
    text = harness.RESULTS.read_text(encoding="utf-8")
    for name in ("training-frozen", "training-trained", "generation", "captions", "cuda-sd15",
                 "cuda-sdxl", "servers"):  # fmt: skip
        assert harness.renew(text, name, ["found"]).count("\nfound\n") == 1


def test_ratios_stand_beside_their_bars() -> None:
    assert harness.against(2.345, 2.0) == "2.35 (bar 2.0: met)"
    assert harness.against(1.2, 1.4) == "1.20 (bar 1.4: missed)"
    assert harness.shares({"UNet": 2.0, "VAE": 1.0}, 4.0) == "UNet 50 %, VAE 25 %, rest 25 %"
    assert harness.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_steps_are_timed_after_the_first_ones() -> None:
    assert harness.seconds_a_step([9.0, 5.0, 1.0, 3.0, 2.0]) == 2.0
    assert harness.seconds_a_step([9.0, 5.0]) == 5.0


def test_images_are_timed_by_when_they_were_written(tmp_path: Path) -> None:
    files = []
    for number, written_s in enumerate((50, 50, 53, 56)):
        files.append(tmp_path / f"{number}.png")
        files[-1].touch()
        os.utime(files[-1], (written_s, written_s))
    assert harness.seconds_an_image(files, 2) == 3.0
    assert harness.seconds_an_image(files, 1) == 2.0


def test_the_peak_is_this_process_s_own() -> None:
    before = harness.peak_mib()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert harness.peak_mib() >= before
    assert harness.peak_mib() > 64


def test_what_is_watched_is_put_back() -> None:
    import diffusers

    original = diffusers.UNet2DConditionModel.forward

    def interrupted() -> None:
        with harness.watched("cpu", []):
            assert diffusers.UNet2DConditionModel.forward is not original
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert diffusers.UNet2DConditionModel.forward is original
    assert harness.parts_of([]) == ({}, 0.0)


def test_parts_are_those_of_the_steps_alone() -> None:
    calls = [("VAE", 0, 5), ("UNet", 6, 7), ("optimiser", 7, 8), ("UNet", 8, 10),
             ("backward", 10, 11), ("optimiser", 12, 14), ("UNet", 14, 20)]  # fmt: skip
    found = harness.parts_of([harness.Event(part, float(a), float(b)) for part, a, b in calls])
    assert found == ({"UNet": 2.0, "backward": 1.0, "optimiser": 2.0}, 6.0)


def test_the_report_goes_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(harness, "IS_SMOKE", False)
    harness.RESULTS.write_text("# Speed\n")
    harness.report("x", "Title", "pytest x", ["| row |"])
    text = harness.RESULTS.read_text()
    assert "## Title" in text and "Command: `pytest x`" in text and "cores" in text
    assert "| row |" in capsys.readouterr().out
    monkeypatch.setattr(harness, "IS_SMOKE", True)
    harness.report("x", "Title", "pytest x", ["| other |"])
    assert harness.RESULTS.read_text() == text
