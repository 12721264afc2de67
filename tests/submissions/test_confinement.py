"""What a submission is kept from: every promise tried in either way of keeping it, and refusal where one is broken."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.errors import CellError, InputError
from fpbench.micro import MODEL
from fpbench.records.store import read_record
from fpbench.submissions import sandbox
from fpbench.submissions.discovery import register_submissions
from fpbench.submissions.folder import find
from fpbench.submissions.process import PROMISES, ChildProcess, Confinement, Limits, confinement
from fpbench.submissions.scratch import remove_orphans
from tests.conftest import require
from tests.kills import gone, marked
from tests.runs.grids import write_tiny
from tests.submissions.hostile import DAEMON, NAME, SEARCH, write

LIMITS = Limits(60, 2**32, 2**26, 2**27)


@pytest.fixture(params=list(sandbox.STARTS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of setting a child apart that this machine has."""
    if (why := sandbox.fails(request.param)) is not None:
        pytest.skip(f"{request.param} does not work here: {why}")
    monkeypatch.setattr(sandbox, "best", lambda: request.param)
    return str(request.param)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    register_submissions()
    return tmp_path


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no way."""
    monkeypatch.setattr(sandbox, "best", lambda: None)
    monkeypatch.setattr(sandbox, "fails", lambda name: "Operation not permitted")


def said(top: str, base: Path | None = None) -> str:
    """What an adapter raises when it is imported."""
    write(Path("submissions") / NAME, top)
    with ChildProcess(find(NAME), LIMITS, base) as child, pytest.raises(CellError) as raised:
        child.ask("describe", name=NAME, configs={})
    return str(raised.value)


def test_every_promise_is_kept(way: str) -> None:
    found = confinement()
    assert found.by == way
    assert found.missing == []


def test_each_trial_succeeds_where_nothing_keeps_it(nothing: None) -> None:
    """A trial that cannot fail would prove nothing."""
    if not sys.platform.startswith("linux"):
        pytest.skip("tries what Linux has")
    found = confinement()
    assert set(found.missing) >= PROMISES.keys() - {"calls"}
    # The filter of calls needs no namespace; without it, in a process of its own:
    code = "from fpbench.submissions.confinement import TRIALS; print(TRIALS['calls'](None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    if "unshare" in (sandbox.fails("namespaces") or ""):
        pytest.skip("this machine refuses these calls to everybody")
    assert done.stdout == "False\n", done.stderr


def test_the_store_is_out_of_sight(way: str, here: Path) -> None:
    """Neither in the working folder, nor beside the base that the child is shown."""
    base = here / "base"
    for folder in (here / "fpbench-run", base / "fpbench-run"):
        (folder / "deltas").mkdir(parents=True)
        (folder / "deltas" / "fpbench-victim.safetensors").write_text("somebody else's update")
    (base / "blob").write_text("{}")
    (base / "config.json").symlink_to("blob")
    seen = f"sorted(os.listdir({str(base)!r})), open({str(base / 'config.json')!r}).read()"
    told = said(f"{SEARCH}\nraise KeyError(found, {seen}, os.path.exists({str(here / 'fpbench-run')!r}))", base)
    assert told == "KeyError: ([], ['blob', 'config.json'], '{}', False)"


def test_a_daemon_counts_and_ends_with_its_parent(way: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", mark := f"mark-{os.getpid()}")
    hoard = "if daemon():\n    x = b'1' * 2**29; time.sleep(600)\ntime.sleep(1.5)"
    write(Path("submissions") / NAME, f"import time\n{DAEMON}\n{hoard}\nraise KeyError('it ran')")
    with ChildProcess(find(NAME), LIMITS) as child, pytest.raises(CellError, match="it ran"):
        child.ask("describe", name=NAME, configs={})
    assert child.peak_memory > 2**29
    assert marked(mark) == []


HANGING = """\
from pathlib import Path
from fpbench.submissions import sandbox
from fpbench.submissions.folder import find
from fpbench.submissions.process import ChildProcess, Limits
sandbox.best = lambda: {way!r}
with ChildProcess(find({name!r}), Limits(60, 2**32, 2**26, 2**27)) as child:
    child.ask("describe", name={name!r}, configs={{}})
"""


def test_a_killed_parent_leaves_nothing(way: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a process, daemons included, nor, once somebody else starts, a folder."""
    monkeypatch.setenv("LANG", mark := f"mark-{os.getpid()}")
    short = Path(tempfile.mkdtemp(prefix="k"))  # sockets have short paths
    monkeypatch.setenv("TMPDIR", str(short))
    write(here / "submissions" / NAME, top=f"{DAEMON}\nimport time\ndaemon()\ntime.sleep(600)")
    parent = subprocess.Popen([sys.executable, "-c", HANGING.format(way=way, name=NAME)])
    while len(marked(mark)) < 4:  # the parent, a launcher or two, the child, its daemon
        assert parent.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    assert gone(mark)
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    remove_orphans()
    short.rmdir()  # which is empty


def test_a_folder_too_deep_for_sockets_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that could not be made would be one that nobody reaches."""
    deep = here / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    write(here / "submissions" / NAME)
    with pytest.raises(InputError, match="set TMPDIR to a shorter one"), ChildProcess(find(NAME), LIMITS) as child:
        child.ask("describe", name=NAME, configs={})


# Where a promise is not kept.


@pytest.mark.parametrize(
    "words",
    [["submit", "check", NAME], ["submit", "run", NAME], ["submit", "verify", NAME], ["run", "--method", NAME]]
    + [["inject", "micro", "--method", NAME, "--fingerprints", "nlf", "--out", "x"]],
    ids=lambda words: "_".join(words[:2]),
)
def test_it_is_refused(words: list[str], nothing: None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "submissions" / NAME, top=f"open({str(here / 'it-ran')!r}, 'w')")
    assert main(words) == 2
    told = capsys.readouterr()
    assert "it could see the run's store, your files" in told.err and "give --unconfined" in told.err
    assert "namespaces: Operation not permitted" in told.err
    assert told.err.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["submissions"], "nothing was run or written"


def test_one_promise_is_enough_to_refuse(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Confinement("bubblewrap", 7, tuple(name for name in PROMISES if name != "calls"))
    assert kept.refused(unconfined=True) is None
    assert "(not kept: calls; " in str(kept.refused(unconfined=False))
    assert Confinement("bubblewrap", 0, tuple(PROMISES)).refused(unconfined=False) is None


def test_the_check_prints_what_is_not_kept(nothing: None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "submissions" / NAME, top="raise KeyError('it ran')")
    assert main(["submit", "check", NAME, "--unconfined"]) == 1
    told = capsys.readouterr()
    assert "KeyError: 'it ran'" in told.out
    assert "  COULD see the run's store, your files or another program's\n" in told.out
    assert "started by nothing that sets it apart" in told.out


@pytest.mark.slow
def test_what_ran_unconfined_says_so(nothing: None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require(MODEL)
    write(here / "submissions" / NAME)
    profile = write_tiny(here / "tiny.toml", ("origin",))
    words = ["run", "--profile", str(profile), "--method", NAME, "--out", "x"]
    assert main([*words, "--unconfined"]) == 0
    told = capsys.readouterr()
    assert "UNCONFINED: a submission can see the run's store" in told.err
    record = read_record(here / f"x/records/micro/nlf/{NAME}/seed-42/origin/fsr.json")
    assert record is not None and "reads" in record["provenance"]["confinement"]["missing"]
    assert "re-run, UNCONFINED (memory, network, processes, reads, sockets, writes not kept)" in told.out
    (row,) = [
        row
        for row in json.loads((here / "x/leaderboard.json").read_text())["rows"]
        if row["method"] == NAME and row["trust"] == "re-run"
    ]
    assert "reads" in row["unconfined"]
