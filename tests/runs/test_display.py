"""What a run shows: lines with a clock, a bar on a terminal, nothing when asked to be quiet."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fpbench.cli import main
from fpbench.records.store import Store, read_records
from fpbench.runs.display import Display, Times
from fpbench.runs.plan import checkpoints, plan
from fpbench.runs.profile import load_profile

CLOCK = r"\d\d:\d\d:\d\d  "


def cells_of(profile: str):
    return plan(load_profile(profile))


def test_a_finished_checkpoint_is_one_line_with_a_clock_and_its_result(small_run, small_profile, capsys):
    cells = cells_of(small_profile)
    base, injected = checkpoints(cells)
    display = Display()
    display.begin(Store(small_run), cells, base)
    display.measuring(injected)
    for cell in injected[:-1]:
        display.measured(cell, None)
    display.measured(injected[-1], "no room")
    display.end()
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(CLOCK, line) for line in lines) and len(lines) == 3
    assert lines[0].endswith(f"{len(base)} of {len(cells)} cells finished")
    assert lines[1].endswith(f"{injected[-1]} failed: no room")
    counts = rf"FSR \d+\.\d %, {len(injected)} cells in 0:00, 1 failed \({len(cells)}/{len(cells)}\)"
    assert re.search(rf"micro · nlf · mcedit_a · seed 42: {counts}$", lines[2])


def test_a_terminal_gets_a_bar_with_the_condition_and_both_times(small_run, small_profile):
    cells = cells_of(small_profile)
    display, screen = Display(), io.StringIO()
    display.console, display.live = Console(file=screen, force_terminal=True, width=200), True
    display.begin(Store(small_run), cells, [])
    display.measuring(checkpoints(cells)[1])
    list(display.bar(range(3), "too short for a bar"))
    display._bars.refresh()
    display.end()
    shown = screen.getvalue()
    assert "mcedit_a · origin" in shown and "seed" not in shown and f"0/{len(cells)}" in shown and "0:00:0" in shown
    assert "too short" not in shown


def test_what_is_left_follows_from_what_cells_like_it_took(small_profile):
    base, injected = checkpoints(cells_of(small_profile))
    times = Times()
    assert times.left(injected) is None and times.left([]) == 0
    for cell in base:
        times.add(cell, 2.0)
    known = {cell.metric for cell in base}
    alike = [cell for cell in injected if cell.metric in known]
    assert times.left(alike) == pytest.approx(2.0 * len(alike)) and times.left(injected) is None


def test_a_finished_run_says_so_and_a_quiet_one_says_nothing(
    finished_run: Path, small_profile: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "--profile", small_profile, "--out", str(finished_run)]
    count = len(read_records(finished_run / "records"))
    assert main(command) == 0
    said = capsys.readouterr()
    assert re.fullmatch(rf"{CLOCK}{count} of {count} cells finished, nothing to do", said.err.splitlines()[0])
    assert main([*command, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.out == said.out and quiet.err == ""
    # A cell is measured again: the log says which, if it is asked to.
    (finished_run / "records/micro/nlf/base/seed-42/origin/fsr.json").unlink()
    monkeypatch.setenv("FPBENCH_LOG", "info")
    assert main([*command, "--quiet"]) == 0
    assert re.fullmatch(rf"{CLOCK}micro/nlf/base/seed-42/origin/fsr: \d+\.\d s\n", capsys.readouterr().err)
    monkeypatch.setenv("FPBENCH_LOG", "loud")
    assert main(command) == 2
    assert "FPBENCH_LOG='loud': expected one of debug, info, warning, error" in capsys.readouterr().err
