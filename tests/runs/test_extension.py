"""A modification, a method and a metric that this file alone adds: a grid, its board and its estimate know them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fpbench
from fpbench.board.rows import rows_from_records
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.metrics.measure import METRICS, Measurement, Metric
from fpbench.models.costs import Work
from fpbench.modifications.base import Modification, ModificationConfig, Modified
from fpbench.records.store import read_records
from fpbench.registry import METHODS, MODIFICATIONS
from tests.conftest import registered_for_now

PROFILE = """
methods = ["louder"]
fingerprints = ["nlf"]
conditions = ["origin", "softened", "softened+nf4"]

[[models]]
name = "micro"
path = "micro"
temperature = 0.6
top_p = 0.9
top_k = 50

[data]
alpaca = "bundled:alpaca.jsonl"
calibration = "bundled:text.jsonl"
rte = "bundled:rte.jsonl"

[sizes]
context_rows = 1
substitutions = 4
substitute_words = 40
near_triggers = 4
band_texts = 10
utility_limit = 2

[modifications.softened]
share = 0.25
"""


class Louder(fpbench.FingerprintMethod):
    """Scales the last normalisation."""

    version = "1"

    class Config(fpbench.MethodConfig):
        by: float = 1.1

    def inject(self, model, tokenizer, fingerprints, context):
        with torch.no_grad():
            model.get_parameter("model.norm.weight").mul_(self.config.by)

    def edited(self, model):
        return ["model.norm.weight"]


class Softened(Modification):
    """Moves the last normalisation towards one, more so the more calibration text there is."""

    data = ("calibration",)
    against_base = True
    figures = {"texts": lambda value: f"{value} texts", **Modification.figures}

    class Config(ModificationConfig):
        share: float = 0.5

    def apply(self, model, tokenizer, context):
        weight = model.get_parameter("model.norm.weight")
        assert not torch.equal(weight, context.base["model.norm.weight"])
        assert context.calibration and not context.rows
        with torch.no_grad():
            weight.lerp_(torch.ones_like(weight), self.config.share)
        return Modified(model, {"texts": len(context.calibration), "relative_change": self.config.share})

    @classmethod
    def implausible(cls, proof, amount=None):
        return None if proof["relative_change"] < 1 else f"a share of {proof['relative_change']}"


def loudness(model: torch.nn.Module, given: Measurement):
    """The mean scale of the last normalisation, and one line a fingerprint."""
    mean = model.get_parameter("model.norm.weight").mean().item()
    rows = len(given.data.alpaca)
    return {"mean": mean, "rows": rows}, [{"trigger": len(each.trigger)} for each in given.fingerprints]


LOUDNESS = Metric(
    loudness,
    data=("alpaca",),
    work=lambda workload, fingerprints: Work(handled=workload.parameters),
    heading="loudness",
    help="Mean scale of the last normalisation.",
    figure="mean",
    text="{:.4f}".format,
)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with registered_for_now(), pytest.MonkeyPatch.context() as patch:
        METHODS.register("louder")(Louder)
        MODIFICATIONS.register("softened")(Softened)
        patch.setitem(METRICS, "loudness", LOUDNESS)
        yield


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("profile") / "extended.toml"
    path.write_text(PROFILE)
    return str(path)


@pytest.fixture(scope="module")
def run(profile, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    records = fpbench.run(profile, out=out)
    assert all(record["status"] == "done" for record in records), [r["reason"] for r in records if "reason" in r]
    return out


def record(run: Path, condition: str) -> dict:
    (path,) = (run / "records").rglob(f"louder/*/{condition}/fsr.json")
    return json.loads(path.read_text())


def test_records_hold_settings_data_and_proof(run):
    found = record(run, "softened")
    modification = found["identity"]["modification"]
    assert (modification["version"], modification["settings"]) == ("1", {"share": 0.25})
    assert modification["data"].keys() == {"calibration"}
    assert found["proof"]["modification"]["relative_change"] == 0.25
    assert record(run, "softened+nf4")["proof"]["modification"].keys() == {"softened", "nf4"}
    assert found["identity"]["method"] == "louder"


def test_what_compares_with_the_base_is_not_measured_on_it(run):
    assert {path.parent.name for path in (run / "records").rglob("base/*/*/fsr.json")} == {"origin"}


def test_the_board_shows_both(run):
    (row,) = (row for row in json.loads((run / "leaderboard.json").read_text())["rows"] if row["method"] == "louder")
    assert row["conditions"]["softened"]["fsr"] is not None and row["avg"] is None
    assert row["cost"]["fraction"] > 0
    page = (run / "leaderboard.html").read_text()
    texts = record(run, "softened")["proof"]["modification"]["texts"]
    assert f"{texts} texts, ‖ΔW‖/‖W‖ 0.250" in page
    assert f"softened: {texts} texts, ‖ΔW‖/‖W‖ 0.250; nf4: 4.50 bits per weight, " in page


def test_the_metric_is_measured_where_it_says_and_shown(run):
    (path,) = (run / "records").rglob("loudness.json")
    assert path.parent.name == "origin" and path.parent.parent.parent.name == "louder"
    found = json.loads(path.read_text())
    assert found["identity"]["metric_data"].keys() == {"alpaca"} and found["queries"]["count"] == 10
    shown = f"{found['result']['mean']:.4f}"
    assert "loudness" in (run / "leaderboard.md").read_text() and shown in (run / "leaderboard.md").read_text()
    header, *lines = (run / "leaderboard_wide.csv").read_text().splitlines()
    assert "loudness" in header and any(shown in line for line in lines)
    page = (run / "leaderboard.html").read_text()
    assert "Mean scale of the last normalisation." in page and shown in page


def test_what_cannot_be_in_a_proof_is_refused(run):
    records = read_records(run / "records")
    (found,) = (each for each in records if each.cell.condition == "softened")
    found.proof["modification"]["relative_change"] = 1.5
    with pytest.raises(InputError, match=r"/softened/fsr: a share of 1\.5; that cannot be"):
        rows_from_records(records, run / "records", rescore=False)


def test_a_board_is_drawn_where_the_modification_is_unknown(run, tmp_path, monkeypatch):
    monkeypatch.delitem(MODIFICATIONS._classes, "softened")
    assert main(["leaderboard", "--records", str(run / "records"), "--out", str(tmp_path)]) == 0
    assert "‖ΔW‖/‖W‖ 0.250" in (tmp_path / "leaderboard.html").read_text()


def test_an_estimate_counts_what_it_can(profile, tmp_path, capsys):
    assert main(["run", "--profile", profile, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr()
    rows = {line.split("|")[2].strip(): line for line in said.err.splitlines() if line.startswith("| micro")}
    assert "estimated" in rows["softened"] and "estimated" in rows["softened+nf4"]
    assert "nobody but its author knows" in rows["inject louder"]
    assert "micro/nlf/louder/seed-42/softened/fsr" in said.out


def test_both_are_listed_and_composed(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    names = [line.split()[0] for line in listed.splitlines()]
    assert names.index("methods:") < names.index("louder") < names.index("modifications:")
    assert names.index("modifications:") < names.index("softened") < names.index("adversaries:")
    with pytest.raises(InputError, match="put 'nf4' last"):
        fpbench.run("micro", conditions=["nf4+softened"])
