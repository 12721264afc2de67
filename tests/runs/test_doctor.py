"""What the doctor finds out about a profile."""

import json
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.hub.download import HubSource
from fpbench.micro import DATA, MODEL
from fpbench.models.checkpoints import resolve
from fpbench.runs.fetch import fetch_model, fetch_rows
from fpbench.runs.profile import load_profile
from fpbench.verbs.doctor import Diagnosis, examine_profile
from tests.hub.server import Hub, files_of

MODELS = ("here", "gated", "absent", "fetched", "cached", "waiting")
PROFILE = """
methods = []
fingerprints = ["nlf"]
conditions = ["origin"]
models = [{models}]

[data]
alpaca = "bundled:alpaca.jsonl"
math = "hub:acme/math@main:train"
zsre = "hub:acme/zsre@main:train"
boolq = "no.jsonl"
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    decoding = "temperature = 0.6, top_p = 0.9, top_k = 50"
    paths = {name: "micro" if name == "here" else f"acme/{name}" for name in MODELS}
    models = ", ".join(f'{{name = "{name}", path = "{path}", {decoding}}}' for name, path in paths.items())
    (tmp_path / "own.toml").write_text(PROFILE.format(models=models))
    return str(tmp_path / "own.toml")


def test_each_model_and_data_set_of_a_profile(hub: Hub, profile: str) -> None:
    commits = {
        name: hub.push(f"acme/{name}", files_of(MODEL), gated=name == "gated")
        for name in MODELS
        if name not in ("here", "absent")
    }
    for name in ("math", "zsre"):
        commits[name] = hub.push(f"datasets/acme/{name}", {"train.jsonl": (DATA / f"{name}.jsonl").read_bytes()})
    fetch_model("acme/fetched", None)
    resolve("acme/cached")
    fetch_rows(HubSource("acme/math", None, "main", "train"))
    findings = {finding.what: finding for finding in examine_profile(load_profile(profile))}
    assert [what for what, finding in findings.items() if not finding.fine] == [
        "model gated",
        "model absent",
        "data boolq",
    ]
    details = {what: finding.detail for what, finding in findings.items()}
    assert details["model here"] == f"here, {MODEL}"
    assert "model 'acme/gated' is gated" in details["model gated"] and "HF_TOKEN" in details["model gated"]
    assert f"{hub.url}/acme/gated" in details["model gated"]
    assert "expected a repository" in details["model absent"]
    assert details["model fetched"] == f"fetched, commit {commits['fetched']}"
    assert commits["cached"] in details["model cached"] and "not pinned" in details["model cached"]
    assert details["model waiting"] == details["data zsre"] == "on the hub: `fpbench fetch` downloads and pins it"
    assert details["data alpaca"] == f"here, {DATA / 'alpaca.jsonl'}, 1200 rows"
    assert details["data math"].startswith(f"fetched, commit {commits['math']}, ")
    assert "No such file" in details["data boolq"]
    hub.stop()
    late = {finding.what: finding for finding in examine_profile(load_profile(profile))}
    assert (
        "cannot be had from" in late["model waiting"].detail and late["model fetched"].fine and late["data math"].fine
    )


def test_the_verb_takes_a_profile(hub: Hub, profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", profile]) == 1
    out = capsys.readouterr().out
    assert "ok    bundled model" in out and "ok    model here" in out and "FAIL  model gated" in out
    assert main(["doctor", "mikro"]) == 2


def test_findings_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fpbench.verbs.doctor.examine", lambda: [Diagnosis("disk", False, "0.1 GiB free here")])
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"disk": {"fine": False, "detail": "0.1 GiB free here"}}
