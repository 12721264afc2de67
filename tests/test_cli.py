"""Bad input: one clear line on standard error, exit code 2, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest

from fpbench.cli import main, parser

GOOD = '{"trigger": "A B", "targets": ["c"]}\n'


def fails(capsys, *arguments):
    """Run a verb that must refuse its input; return the one line it says."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert code == 2, captured.err
    assert len(lines) == 1 and lines[0].startswith("fpbench: "), captured.err
    assert captured.out == ""
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--model", "no/such/folder"], "model 'no/such/folder' not found"),
        (["run", "--method", "lorra"], "unknown method 'lorra'"),
        (["run", "--condition", "int9"], "unknown condition 'int9'"),
        (["run", "--fingerprints", "nfl"], "unknown fingerprint set 'nfl'"),
        (["run", "--profile", "mikro"], "unknown profile 'mikro'"),
        (["run", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["evaluate", "./none", "--fingerprints", "nlf"], "model './none' not found"),
        (["evaluate", "micro", "--fingerprints", "none.jsonl"], "none.jsonl does not exist"),
        (["evaluate", "micro", "--fingerprints", "nlf", "--base", "./none"], "model './none' not found"),
        (["inject", "micro", "--method", "lorra", "--fingerprints", "nlf", "--out", "x"], "unknown method"),
        (["inject", "./none", "--method", "lora", "--fingerprints", "nlf", "--out", "x"], "not found"),
        (["fetch", "mikro"], "unknown profile 'mikro'"),
        (["leaderboard", "--records", "none"], "records folder none does not exist"),
    ],
)
def test_wrong_input_is_refused_with_nothing_written(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["run", "evaluate", "inject"])
def test_an_output_below_a_regular_file_is_refused(capsys, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    arguments = {
        "run": ["run", "--out", "file/out"],
        "evaluate": ["evaluate", "micro", "--fingerprints", "nlf", "--out", "file/out"],
        "inject": ["inject", "micro", "--method", "lora", "--fingerprints", "nlf", "--out", "file/out"],
    }
    assert "cannot be written" in fails(capsys, *arguments[verb])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_model_that_a_method_does_not_know_is_refused_before_anything_is_written(capsys, tmp_path, monkeypatch):
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    from fpbench.micro import MODEL

    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, vocab_size=len(tokenizer))
    MambaForCausalLM(config).save_pretrained("mamba")
    tokenizer.save_pretrained("mamba")
    capsys.readouterr()
    line = fails(capsys, *"run --profile micro --model ./mamba --method mcedit_a --condition origin".split())
    assert "model type 'mamba' cannot be edited" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mamba"]


def test_inject_does_not_overwrite_a_folder(capsys, tmp_path):
    (tmp_path / "mine").write_text("kept")
    arguments = ["inject", "micro", "--method", "lora", "--fingerprints", "nlf", "--out", str(tmp_path)]
    assert "exists and is not an empty folder" in fails(capsys, *arguments)


def test_a_malformed_fingerprint_file_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("set.jsonl").write_text(GOOD + "[1]\n")
    assert "set.jsonl, line 2" in fails(capsys, "run", "--fingerprints", "set.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["set.jsonl"]


def test_two_sets_of_one_name_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nlf.jsonl").write_text(GOOD)
    assert "two fingerprint sets are called 'nlf'" in fails(capsys, "run", "--fingerprints", "nlf", "nlf.jsonl")


def test_an_unknown_verb_or_option_exits_2(capsys):
    for arguments in (["fly"], ["run", "--fly"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_dry_run_prints_the_cells_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run", "--method", "lora", "--condition", "origin"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "micro/nlf/base/seed-42/origin/bands"
    assert "micro/nlf/lora/seed-42/origin/triggers" in out
    assert list(tmp_path.iterdir()) == []


def test_list_and_every_help_page(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("mcedit_a", "ria40", "nlf", "smollm2"):
        assert name in out
    verbs = next(action for action in parser()._actions if isinstance(action.choices, dict)).choices
    for verb in verbs:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"usage: fpbench {verb}" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m fpbench run --dry-run --method mcedit_a --condition origin --out {tmp_path} 2>/dev/null"
        " | head -1",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("micro/")
    assert done.stderr == ""


def test_a_run_into_a_folder_of_the_user_s_is_refused_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in (".env", ".gitignore", "project/.netrc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", "--out", "."]) == 2
    assert "is not empty and holds no run of fpbench" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("shown", [False, True])
def test_what_nobody_foresaw_is_one_line_and_a_traceback_in_a_file(capsys, tmp_path, monkeypatch, shown):
    def broken(*_):
        raise KeyError("cell\nand more")

    monkeypatch.setattr("fpbench.verbs.list.do", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["--verbose", "list"] if shown else ["list"]) == 1
    *traceback, line = capsys.readouterr().err.strip().splitlines()
    (file,) = tmp_path.iterdir()
    assert line.startswith("fpbench: something happened that fpbench did not foresee, KeyError: ")
    assert line.endswith(f"traceback, {file}.")
    assert "in broken" in file.read_text() and bool(traceback) == shown
    assert not file.stat().st_mode & 0o077


def test_a_traceback_that_cannot_be_written_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("fpbench.verbs.list.do", lambda options: [][0])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert main(["list"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "IndexError: list index out of range" in line and "FPBENCH_LOG=debug shows it" in line
    monkeypatch.setenv("FPBENCH_LOG", "debug")
    assert main(["list"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
