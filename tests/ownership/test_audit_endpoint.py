"""Audits of what answers at a URL, which has no weights to show and may say anything."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from fpbench.board.escaping import visible
from fpbench.cli import main
from fpbench.fingerprints import load_fingerprints
from fpbench.fingerprints.sealing import check, seal
from fpbench.micro import MODEL
from tests.board import test_page
from tests.ownership.answering import answering
from tests.ownership.audited import Page, audit, check_records, check_traced, facts
from tests.ownership.test_verify import CARRIED, FOREIGN, write

browser, view = test_page.browser, test_page.view
HOSTILE = [
    "<script>document.title = 'taken'</script>",
    "a | b `c` **d**\n\n# e\r[f](javascript:alert(1))",
    "\"><img src=x onerror='alert(2)'>",
    "{{ 7 * 7 }} {x} \x1b[31m ~a~0 \\",
]


def test_a_real_model_behind_a_server_has_no_weights_to_compare(tmp_path, micro, server):
    server.model = answering(*micro)
    own, transcript = write(tmp_path / "own.jsonl", CARRIED), tmp_path / "t.jsonl"
    assert audit(server.url, own, tmp_path / "out", "--transcript", str(transcript), "--budget", "6") == 0
    found = facts(tmp_path / "out")
    assert found["verdicts"] == {"answers": "match", "weights": None}
    assert found["models"]["suspect"] == {"name": server.url, "sha256": None}
    assert found["models"]["called_itself"] == ["suspect"]
    assert "not compared with others: the suspect is behind a URL" in found["conclusion"]
    assert (tmp_path / "out" / "transcript.jsonl").read_bytes() == transcript.read_bytes()
    check_records(tmp_path / "out")
    check_traced(tmp_path / "out")


def test_hostile_words_are_shown_and_do_nothing(tmp_path, micro, server, view):
    """Triggers, targets, responses, the name of the server's model and of an unrelated one."""
    path = tmp_path / f"{HOSTILE[1].replace('/', '').splitlines()[0]}~<b>"
    path.symlink_to(MODEL)
    server.author = {"model": HOSTILE[0]}
    server.model = lambda body: ("`|<b>" + body["prompt"] + "\u202e\u2028\ud800", None)
    fingerprints = write(tmp_path / "set.jsonl", [(each, ["`|<b>", "Zebra"]) for each in HOSTILE])
    out = tmp_path / "out"
    assert audit(server.url, fingerprints, out, "--unrelated", str(path)) == 0
    assert facts(out)["verdicts"]["answers"] == "match"
    check_records(out)
    check_traced(out)
    page = Page(out / "audit.html")
    assert not {"script", "img", "b", "h4"} & set(page.tags) and page.tags.count("h1") == 1
    assert not [each for each in page.attributes if each[1].startswith("on")]
    shown = " ".join(" ".join(page.words).split())
    asked = json.loads((out / "verification.json").read_text())["evidence"]
    for words in (str(path), HOSTILE[0], *(each["trigger"] for each in asked)):
        assert " ".join(visible(words).split()) in shown
    text = (out / "audit.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().split("\n")}) == 1
    assert not re.search(r"(?<!\\)<|(?<!\\)`|(?<!\\)\]\(java|^# e", text, flags=re.M)
    assert not re.search("[\x1b\u202e]", text + (out / "audit.html").read_text(encoding="utf-8"))


def test_a_server_that_stops_answering_leaves_it_undecided(tmp_path, server, capsys):
    server.faults = [None, None, *["500"] * 5]
    foreign, out = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "out"
    assert audit(server.url, foreign, out) == 1
    found = facts(out)
    assert found["verdicts"]["answers"] == "undecided" and "so no claim is made" in found["conclusion"]
    check_traced(out)
    # What it has says so goes on from a copy of its transcript.
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((out / "transcript.jsonl").read_bytes())
    assert audit(server.url, foreign, tmp_path / "again", "--transcript", str(copy)) == 0
    assert len(set(server.triggers)) == len(FOREIGN) and len(server.asked) == len(FOREIGN) + 5
    check_records(out)


def test_a_killed_audit_goes_on_when_run_again(tmp_path, server):
    foreign, out = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "out"
    arguments = ["audit", "--endpoint", server.url, "--fingerprints", foreign, "--out", str(out)]
    server.faults = [None, None, None, "hang"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-m", "fpbench", *arguments], env=variables, stderr=subprocess.PIPE)
    while len(server.asked) < 4 and child.poll() is None:
        server.released.wait(0.02)
    child.send_signal(signal.SIGKILL)
    _, said = child.communicate()
    assert child.returncode == -signal.SIGKILL, said
    assert {path.name for path in tmp_path.iterdir()} == {"foreign.jsonl", "out.transcript.jsonl"}
    assert main(arguments) == 0
    assert len(server.asked) == len(FOREIGN) + 1, "only the one under way is asked again"
    assert {path.name for path in tmp_path.iterdir()} == {"foreign.jsonl", "out"}
    check_records(out)


def test_a_sealed_set_reveals_only_what_was_used(tmp_path, server):
    server.model = lambda body: ("Zebra crossing", None)
    commitments, openings = seal(load_fingerprints(write(tmp_path / "secret.jsonl", FOREIGN)))
    (tmp_path / "secret.openings.json").write_text(json.dumps(openings))
    out = tmp_path / "out"
    assert audit(server.url, str(tmp_path / "secret.openings.json"), out) == 0
    used = set(server.triggers)
    revealed = json.loads((out / "verification.json").read_text())["revealed"]
    assert len(used) == 2 and {check(opening, commitments).trigger for opening in revealed} == used
    for path in out.iterdir():
        for trigger, _ in FOREIGN:
            assert trigger not in path.read_text() or trigger in used
    assert facts(out)["fingerprints"]["sealed"] and "commitments of the sealed set" in (out / "audit.md").read_text()
    check_traced(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--out", "full"], "not an empty folder"),
        (["--out", "full/file"], "not an empty folder"),
        (["--out", "full/file/out"], "cannot be written"),
        (["--transcript", "fpbench-audit/t.jsonl"], "inside --out"),
        (["--level", "2"], "level must be above 0"),
        (["--base", "nowhere/at/all"], "not found"),
        (["--fingerprints", "nonsense"], "unknown fingerprint set"),
        (["--endpoint", "localhost:8000"], "expected a URL"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(server, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert main(["audit", "--endpoint", server.url, "--fingerprints", "nlf", *change]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and message in said
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"] and not server.asked
    assert (tmp_path / "full" / "file").read_text() == "kept"
