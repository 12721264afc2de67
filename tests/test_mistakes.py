"""Every verb with its likeliest mistakes: one line that says what to type, exit code 2, nothing written."""

import pytest

from fpbench.cli import VERBS, main

LINE = 400  # characters of a line that is read to its end
MISTAKES = {
    "run": [
        ("run --methd lora", "unknown option --methd: did you mean --method?"),
        ("run mcedit_a", "unexpected argument 'mcedit_a': did you mean --method mcedit_a?"),
        ("run --seed 42", "unknown option --seed: did you mean --seeds?"),
        ("run --method lorra", "unknown method 'lorra': did you mean 'lora'?"),
        ("run nf4+suppress@3", "did you mean --condition nf4+suppress@3?"),
        ("run --seeds two", "--seeds 'two': expected a whole number"),
        ("run --limit 0", "key 'limit'"),
    ],
    "evaluate": [
        ("evaluate micro", "--fingerprints is missing: type `fpbench evaluate MODEL --fingerprints S`"),
        ("evaluate micro nlf", "type `fpbench evaluate MODEL --fingerprints S`"),
        ("evaluate micr --fingerprints nlf", "model 'micr' not found: expected a folder"),
    ],
    "verify": [
        ("verify --fingerprints nlf", "MODEL or --endpoint is missing: type `fpbench verify MODEL --fingerprints S`"),
        ("verify micro --fingerprints nfl", "unknown fingerprint set 'nfl': did you mean 'nlf'?"),
        ("verify micro --endpoint localhost:8000 --fingerprints nlf", "not allowed with argument"),
        ("verify --endpoint localhost:8000 --fingerprints nlf", "expected a URL such as http://"),
    ],
    "compare": [
        ("compare micro", "B is missing: type `fpbench compare A B`"),
        ("compare micro ./none", "model './none' not found"),
        ("compare micro micro --unrelate x", "unknown option --unrelate: did you mean --unrelated?"),
    ],
    "audit": [
        ("audit micro --finger nlf", "unknown option --finger: did you mean --fingerprints?"),
        ("audit micro --fingerprints nlf --level 0", "the level must be above 0"),
        ("audit --fingerprints nlf", "MODEL or --endpoint is missing"),
    ],
    "inject": [
        ("inject micro", "--method, --fingerprints, --out are missing: type `fpbench inject MODEL --method X"),
        ("inject micro --method lora --fingerprints nlf", "--out is missing"),
        ("inject micro --method mcedit --fingerprints nlf --out x", "unknown method 'mcedit': did you mean 'mcedit_"),
    ],
    "fingerprints": [
        ("fingerprints", "PART is missing: type `fpbench fingerprints (if|nlf|cf|method|check|seal|reveal)`"),
        ("fingerprints chek nlf --model micro", "unknown part 'chek': did you mean 'check'?"),
        ("fingerprints if", "--out is missing: type `fpbench fingerprints if --out FILE`"),
    ],
    "study": [
        ("study", "is missing: type `fpbench study (kind|targets|length|ablation|margin)`"),
        ("study kinds", "did you mean 'kind'?"),
        ("study kind --profile mikro", "unknown profile 'mikro': did you mean 'micro'?"),
    ],
    "leaderboard": [
        ("leaderboard", "records folder fpbench-run does not exist: expected a run"),
        ("leaderboard --format xls", "unknown value for --format: 'xls': choose one of md, csv, json, html, latex"),
        ("leaderboard --record x", "unknown option --record: did you mean --records?"),
    ],
    "submit": [
        ("submit", "PART is missing: type `fpbench submit (new|check|run|verify)`"),
        ("submit chek mine", "unknown part 'chek': did you mean 'check'?"),
        ("submit check mine", "mine"),
    ],
    "list": [
        ("list --jsn", "unknown option --jsn: did you mean --json?"),
        ("list methods", "unexpected argument 'methods'"),
        ("lst", "unknown verb 'lst': did you mean 'list'?"),
    ],
    "fetch": [
        ("fetch", "PROFILE|MODEL is missing: type `fpbench fetch PROFILE|MODEL`"),
        ("fetch mikro", "unknown profile 'mikro': did you mean 'micro'?"),
        ("fetch papper.toml", "profile file papper.toml does not exist"),
        ("fetch micro --revision main", "--revision is of a hub id"),
    ],
    "doctor": [
        ("doctor papr", "unknown profile 'papr': did you mean 'paper'?"),
        ("doctor --jason", "unknown option --jason: did you mean --json?"),
        ("docter", "unknown verb 'docter': did you mean 'doctor'?"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("command", "said"), [each for found in MISTAKES.values() for each in found])
def test_a_mistake_is_one_line_that_says_what_to_type(command, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        code = main(command.split())
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert code == 2 and captured.out == "" and line.startswith("fpbench: ") and len(line) <= LINE
    assert said in line, line
    assert list(tmp_path.iterdir()) == []


def test_every_verb_is_walked_with_three():
    assert MISTAKES.keys() == set(VERBS) and min(map(len, MISTAKES.values())) >= 3


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    assert "usage: fpbench" in capsys.readouterr().out
