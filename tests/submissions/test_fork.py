"""Pull requests from forks: one submission, nothing else, and no text of the submitter's near a shell."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from fpbench.errors import InputError
from fpbench.submissions import fork
from tests.conftest import ROOT
from tests.submissions.hostile import NAME, write

WORKFLOW = ROOT / ".github" / "workflows" / "submission.yml"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit that both sides have."""
    folder = tmp_path / "handed-in"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    (folder / "README.md").write_text("ours\n")
    commit(folder)
    git(folder, "branch", "base")
    return folder


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a change")


def outcome(folder: Path, author: str = "A-Stranger") -> int:
    return fork.main(folder, git(folder, "rev-parse", "base").strip(), author)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("README.md", "'README.md' changed: expected nothing outside submissions/NAME/"),
        ("fpbench/metrics/fsr.py", "'fpbench/metrics/fsr.py' changed"),
        ("leaderboard/records/x.json", "changed: expected nothing outside"),
        (".github/workflows/submission.yml", "changed: expected nothing outside"),
        ("submissions/notes.txt", "changed: expected nothing outside"),
        ("submissions/_template/adapter.py", "changed: expected nothing outside"),
        ("submissions/Other/adapter.py", "changed: expected nothing outside"),
        ("submissions/$(touch pwned)/adapter.py", "changed: expected nothing outside"),
        ("submissions/somebody/adapter.py", "found somebody, stranger: hand in each on its own"),
    ],
)
def test_nothing_outside_one_submission_may_change(
    checkout: Path, path: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(checkout / "submissions" / NAME)
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("theirs\n")
    commit(checkout)
    assert outcome(checkout) == 2
    assert said in capsys.readouterr().err
    assert not list(checkout.rglob("pwned"))


def test_a_file_moved_into_a_submission_is_missed_where_it_was(checkout: Path, capsys) -> None:
    write(checkout / "submissions" / NAME)
    (checkout / "README.md").rename(checkout / "submissions" / NAME / "NOTICE")
    commit(checkout)
    assert outcome(checkout) == 2
    assert "'README.md' changed" in capsys.readouterr().err


def test_the_submission_is_looked_at(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write(checkout / "submissions" / NAME) / "data.txt").symlink_to("/etc/passwd")
    commit(checkout)
    assert outcome(checkout) == 2
    assert "found the link data.txt" in capsys.readouterr().out


def test_nothing_changed_or_a_commit_that_is_none(checkout: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        fork.submission_of(fork.changed(checkout, git(checkout, "rev-parse", "base").strip()))
    with pytest.raises(InputError, match="expected hexadecimal digits"):
        fork.changed(checkout, "--output=/tmp/x")
    with pytest.raises(InputError, match="git cannot compare"):
        fork.changed(checkout, "0" * 40)


@pytest.mark.parametrize(
    ("authors", "author", "said"),
    [
        (f'{NAME} = ["Somebody", "else"]', "a-stranger", "belongs to Somebody, else, not to 'a-stranger'"),
        (f"{NAME} = []", "a-stranger", "belongs to the maintainers"),
        ('other = ["a-stranger"]', "a-stranger", "is registered to nobody: a maintainer has to add it"),
        (None, "a-stranger", "is registered to nobody"),
        (f'{NAME} = "a-stranger"', "a-stranger", "authors.toml is malformed: expected lines NAME"),
        ("= [", "a-stranger", "authors.toml is malformed"),
        (f'{NAME} = ["Somebody"]', "somebody", None),
    ],
)
def test_a_folder_is_changed_by_whom_its_name_belongs_to(
    checkout: Path, capsys: pytest.CaptureFixture[str], authors: str | None, author: str, said: str | None
) -> None:
    folder = write(checkout / "submissions" / NAME)
    if authors is not None:
        (folder.parent / "authors.toml").write_text(authors)
    commit(checkout)
    git(checkout, "branch", "--force", "base")
    (folder / "README.md").write_text("Ten words that somebody else would rather have in this file.\n")
    commit(checkout)
    if said is None:
        fork.check_author(checkout, git(checkout, "rev-parse", "base").strip(), NAME, author)
    else:
        assert outcome(checkout, author) == 2
        assert said in capsys.readouterr().err
    # Nor does the fork say whose a name is.
    (folder.parent / "authors.toml").write_text(f'{NAME} = ["{author}"]')
    commit(checkout)
    assert outcome(checkout, author) == 2
    assert "expected nothing outside submissions/NAME/" in capsys.readouterr().err


def test_the_committed_authors_name_every_submission() -> None:
    folder = ROOT / "submissions"
    names = {path.parent.name for path in folder.glob("[a-z]*/submission.toml")}
    assert fork._authors((folder / "authors.toml").read_bytes()).keys() == names


def test_a_removed_submission_is_a_maintainer_s(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(checkout / "submissions" / NAME)
    commit(checkout)
    (folder.parent / "authors.toml").write_text(f'{NAME} = ["a-stranger"]\n')
    commit(checkout)
    git(checkout, "branch", "--force", "base")
    for path in folder.iterdir():
        path.unlink()
    commit(checkout)
    folder.rmdir()
    assert outcome(checkout) == 2
    assert "removes submission 'stranger'" in capsys.readouterr().err


def test_the_workflow_runs_only_what_is_pinned_by_content() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for action in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), f"{action}: a tag can be moved"
    installs = [line for step in steps for line in step.get("run", "").splitlines() if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert "--require-hashes -r trusted/locked.txt" in line or "--no-deps --no-build-isolation" in line, line


def test_every_locked_package_has_hashes_and_the_version_of_the_constraints() -> None:
    text = (ROOT / "locked.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    locked: dict[str, set[str]] = {}
    for block in blocks:
        name, version = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", block).groups()  # type: ignore[union-attr]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}$", block), f"{name} has no hash"
        locked.setdefault(name.lower().replace("_", "-"), set()).add(version)
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
    for name, version in pins.items():
        assert locked[name.lower().replace("_", "-")] == {version}, name
    assert "torch" in locked and not [name for name in locked if name.startswith(("nvidia-", "cuda-"))]


def test_the_workflow_gives_a_fork_nothing() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert set(workflow[True]) == {"pull_request"}, "pull_request_target would run with the secrets of the repository"
    assert workflow["permissions"] == {"contents": "read"} and "secrets" not in text.lower().replace("no secret", "")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for step in steps:
        assert "${{" not in step.get("run", ""), "an expression in a script is text that a shell obeys"
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    given = {value for step in steps for value in step.get("env", {}).values()}
    # Hexadecimal digits, and a login, which is letters, digits and hyphens; both are quoted where they are used.
    assert given == {f"${{{{ github.event.pull_request.{each} }}}}" for each in ("base.sha", "user.login")}
    scripts = " ".join(step.get("run", "") for step in steps)
    assert 'fpbench.submissions.fork handed-in "$BASE" "$AUTHOR"' in scripts
    assert not re.search(r"install[^\n]*handed-in", scripts)
