"""What submitters say of their adversaries: shown beside a row's own figures, and counted once it was measured here."""

import json
import shutil
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.records.cell import PROTOCOL
from fpbench.records.record import cell_id
from fpbench.records.store import Store
from fpbench.registry import ADVERSARIES, METHODS
from fpbench.submissions.discovery import register_submissions
from fpbench.submissions.folder import ADVERSARY, Submission, find, version_of, write_new
from fpbench.submissions.rerun import claimed, sample_attacks
from tests.board.written import attacked_grid, fsr, price
from tests.runs.grids import SHORT, write_tiny

NAME = "my_thief"
DOSES = ("my_thief@1", "my_thief@4")


def measure(store: Store, condition: str, left: float, long: float, seeds=(42, 43), **more) -> None:
    """What it leaves of the row ``strong``, and its price on the base."""
    named = [] if condition == "origin" else [{"name": NAME, "version": version_of(find(NAME))}]

    def known(method: str, seed: int, metric: str) -> dict:
        identity = {"method": method, "seed": seed, "condition": condition, "metric": metric, "adversaries": named}
        identity["protocol"] = PROTOCOL
        return {"seed": seed, "identity": identity, "id": cell_id(identity)}

    for seed in seeds:
        for method, p in (("strong", left), ("base", 0.0)):
            fsr(store, method, condition, [p] * 10, **known(method, seed, "fsr"), **more)
        price(store, "base", condition, long=long, **known("base", seed, "price"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attacked_grid(tmp_path_factory.mktemp("attacked")).folder


@pytest.fixture
def own(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Our own records, of attacked rows."""
    monkeypatch.chdir(tmp_path)
    for registry in (METHODS, ADVERSARIES):
        monkeypatch.setattr(registry, "finders", [])
    monkeypatch.setattr(METHODS, "_classes", METHODS._classes | {"strong": object})
    register_submissions()
    write_new(NAME, example=ADVERSARY)
    return Store(shutil.copytree(written, tmp_path / "own"))


@pytest.fixture
def theirs(own: Store) -> Store:
    """A submitter's: nothing is left of ``strong``, for nothing."""
    store = Store(Path("submissions", NAME))
    measure(store, "origin", 1.0, 0.0)
    for condition in DOSES:
        measure(store, condition, 0.0, 0.001)
    return store


def board(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["leaderboard", "--records", "own/records", "--claimed", "submissions", "--format", kind]) == 0
    return capsys.readouterr().out


def removal(capsys: pytest.CaptureFixture[str], method: str = "strong") -> dict:
    found = [row for row in json.loads(board("json", capsys))["rows"] if row["method"] == method]
    return next(row for row in found if row["trust"] == "re-run")["removal"]


def test_a_claim_is_shown_and_moves_nothing(own, theirs, capsys) -> None:
    assert main(["leaderboard", "--records", "own/records", "--format", "json"]) == 0
    before = {row["method"]: row.get("removal") for row in json.loads(capsys.readouterr().out)["rows"]}
    found = removal(capsys)
    shown = found.pop("claimed")
    assert found == before["strong"] and removal(capsys, "weak") == before["weak"]
    assert (shown[NAME]["of"], shown[NAME]["compared"], shown[NAME]["outside"]) == (4, 0, 0)
    assert shown[NAME]["thief"]["within"]["0.01"]["fsr"] == 0.0
    assert "0.0 [0.0, 16.8] (claimed, 0/4 cells compared)" in board("md", capsys)


def test_submissions_of_another_folder_are_told_as_well(own, theirs, capsys, monkeypatch) -> None:
    here = removal(capsys)
    Path("submissions").rename("elsewhere")
    for registry in (METHODS, ADVERSARIES):
        monkeypatch.setattr(registry, "finders", [])
    register_submissions()  # finds nothing in the working folder
    assert main(["leaderboard", "--records", "own/records", "--claimed", "elsewhere", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert next(row for row in rows if (row["method"], row["trust"]) == ("strong", "re-run"))["removal"] == here


def test_what_was_measured_here_counts_and_lowers_the_row(own, theirs, capsys) -> None:
    before = removal(capsys)["worst"]["L1"]["within"]["0.1"]["fsr"]
    measure(own, DOSES[0], 0.0, 0.001)
    found = removal(capsys)
    assert before > 0 and found["worst"]["L1"]["within"]["0.1"]["fsr"] == 0.0  # lower this row
    assert found["worst"]["L1"]["within"]["0.1"]["chosen"] == [DOSES[0]] * 2
    # A copy of a record is no second measurement.
    assert found["claimed"][NAME]["compared"] == 0
    measure(own, DOSES[1], 0.3, 0.001)
    assert "claimed" not in removal(capsys) and "(claimed" not in board("md", capsys)


def test_a_claim_that_does_not_hold_says_so(own, theirs, capsys) -> None:
    measure(own, DOSES[0], 0.5, 0.001)
    assert "(claimed, 2/4 cells compared, 2 of them outside)" in board("md", capsys)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda store: fsr(store, "strong", "nf4", [0.0] * 10), "expected 'origin', or a condition that names"),
        (lambda store: fsr(store, "nobody", DOSES[0], [0.0] * 10), "method 'nobody' is not known here"),
        (lambda store: fsr(store, "strong", "my_thief@1.5", [0.0] * 10), "the dose is steps, a whole number"),
        (lambda store: fsr(store, "strong", DOSES[0], [0.0] * 10, {"mean": 0.5}), "is not the mean of its queries"),
        (lambda store: price(store, "base", DOSES[0], result={"refused": 0.5}), "refused"),
    ],
)
def test_what_no_run_writes_is_left_out_with_its_reason(own, theirs, capsys, caplog, write, said) -> None:
    write(theirs)
    assert "claimed" not in removal(capsys)
    assert f"submission {NAME} is left out of the board: " in caplog.text and said in caplog.text


def test_records_of_other_code_are_refused(own, theirs) -> None:
    submission = find(NAME)
    assert len(claimed(submission)) == 2
    path = submission.folder / "adversary.py"
    path.write_text(path.read_text() + "\n# another\n")
    with pytest.raises(Exception, match="was measured with version 1.* the code there is 1"):
        claimed(Submission(submission.folder))
    shutil.rmtree(submission.folder / "records")
    with pytest.raises(Exception, match="holds no records of 'my_thief': its author runs `fpbench submit run` first"):
        claimed(Submission(submission.folder))


def test_a_sample_is_of_attacked_cells_with_all_that_they_are_compared_with(own, theirs) -> None:
    groups = claimed(find(NAME))
    (first, *others), (second, *_) = (sample_attacks(groups, 1, draw) for draw in (1, 1))
    assert first == second and others  # one seed, one sample
    found = [str(cell).replace(str(first.seed), "N") for cell in (first, *others)]
    attacked = {cell.condition for cell in (first, *others)} - {"origin"}
    assert len(attacked) == 1 and len(found) == len({(c.method, c.condition, c.metric) for c in (first, *others)}) == 6
    assert len(sample_attacks(groups, None, 1)) == sum(len(list(group.measurements())) for group in groups)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["run", NAME, "--condition", "nf4"], "--condition nf4: expected conditions that name the adversary"),
        (["run", NAME, "--condition", "my_thief@-1"], "the dose is steps, a whole number from 0, found '-1'"),
        (["run", NAME, "--method", "nobody"], "unknown method 'nobody'"),
        (["run", "stranger", "--method", "lora"], "--method is of an adversary: whose fingerprints"),
        (["run", "stranger", "--adversary"], "submission 'stranger' is no adversary: expected adversary.py"),
        (["verify", "stranger", "--adversary"], "submission 'stranger' is no adversary: expected adversary.py"),
        (["verify", NAME], "holds no records of 'my_thief'"),
        (["run", "bare"], "submission 'bare' is refused: required: expected the files submission.toml"),
    ],
)
def test_what_cannot_be_run_is_one_line(own, capsys, command, said) -> None:
    from tests.submissions.hostile import write

    write(Path("submissions/stranger"))
    shutil.copytree(f"submissions/{NAME}", "submissions/bare")
    Path("submissions/bare/submission.toml").unlink()
    profile = ["--profile", str(write_tiny(Path("small.toml"), SHORT))]
    assert main(["submit", *command, *profile]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("fpbench-run").exists() and not Path("submissions", NAME, "records").exists()
