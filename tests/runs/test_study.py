"""Studies: variants of a method, or of a set, as one ordinary grid."""

from pathlib import Path

import pytest
import torch

from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.fingerprints import load_fingerprints
from fpbench.models.loading import Loading
from fpbench.records.store import read_records
from fpbench.runs.plan import plan
from fpbench.runs.profile import load_profile
from fpbench.runs.study import STUDIES, _lengths, _numbers_of_candidates


def test_every_switch_of_the_ablation_is_a_row_of_the_table_and_of_the_figure(
    tiny_profile: str, tmp_path: Path
) -> None:
    """One test of one study: six injections take ten seconds, and as a fixture each worker would make its own."""
    ablation = tmp_path / "ablation"
    assert main(["study", "ablation", "--profile", tiny_profile, "--condition", "origin", "--out", str(ablation)]) == 0
    records = read_records(ablation / "records")
    costs = {each.cell.method: each.result["weights_digest"] for each in records if each.cell.metric == "cost"}
    assert list(STUDIES["ablation"].variants) == sorted(costs, key=list(STUDIES["ablation"].variants).index)
    assert len(set(costs.values())) == len(costs)
    # The identity names the method itself and its hyper-parameters, not what this table calls them.
    identities = {each.cell.method: each.identity for each in records}
    single = identities["single_candidate"]
    assert single["method"] == "mcedit_a" and single["hyperparameters"]["candidates"] == "primary"

    # The table has the order of the study and the paper's figures.
    lines = [line.split("|") for line in (ablation / "study.md").read_text().splitlines() if line.startswith("| micro")]
    assert [line[2].strip() for line in lines] == list(STUDIES["ablation"].variants)
    figures = {line[2].strip(): line[11].strip() for line in lines}
    assert figures["mcedit_a"] == "90.0" and figures["single_candidate"] == "81.4"
    assert figures["literal_competitors"] == "–"

    svg = (ablation / "study.svg").read_text()
    assert all(name in svg for name in STUDIES["ablation"].variants) and "accidental triggers" in svg


def test_the_sets_of_a_study_differ_in_what_it_varies(small_profile: str, tmp_path: Path) -> None:
    profile = load_profile(small_profile)
    lengths = {name: load_fingerprints(path) for name, path in _lengths(profile, tmp_path, Loading("cpu")).items()}
    assert {name: {len(pair.trigger.split()) for pair in pairs} for name, pairs in lengths.items()} == {
        "2-words": {2}, "4-words": {4}, "5-words": {5}
    }  # fmt: skip
    made = _numbers_of_candidates(profile, tmp_path, Loading("cpu"))
    candidates = {name: load_fingerprints(path) for name, path in made.items()}
    assert {name: {len(pair.targets) for pair in pairs} for name, pairs in candidates.items()} == {
        "nlf-1": {1}, "nlf-3": {3}, "nlf-5": {5}, "nlf-10": {10}
    }  # fmt: skip
    # A sweep varies the number of candidates and nothing else.
    assert len({tuple(pair.trigger for pair in pairs) for pairs in candidates.values()}) == 1
    two = profile.model_copy(update={"fingerprints": ("nlf", "if")})
    with pytest.raises(InputError, match="varies one set for one model, found nlf, if: choose with --fingerprints"):
        _numbers_of_candidates(two, tmp_path, Loading("cpu"))


def test_margins_and_weights_are_methods_of_their_own() -> None:
    variants = STUDIES["margin"].variants
    assert variants is not None and len(variants) == 10
    assert len({str(sorted(config.items())) for config in variants.values()}) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kind", "targets", "length", "margin"])
def test_every_study_runs(name: str, small_profile: str, tmp_path: Path) -> None:
    assert main(["study", name, "--profile", small_profile, "--condition", "origin", "--out", str(tmp_path)]) == 0
    lines = [line.split("|") for line in (tmp_path / "study.md").read_text().splitlines() if line.startswith("| micro")]
    labels = [line[2].strip() for line in lines]
    expected = {
        "kind": [f"{kind} · mcedit_a" for kind in ("if", "nlf", "cf", "cf_random")],
        "targets": ["nlf-1", "nlf-3", "nlf-5", "nlf-10"],
        "length": ["2-words", "4-words", "5-words"],
        "margin": list(STUDIES["margin"].variants or ()),
    }
    assert labels == expected[name]


def test_a_variant_in_a_profile_is_one_more_row(small_profile: str, tmp_path: Path) -> None:
    text = Path(small_profile).read_text()
    path = tmp_path / "variants.toml"
    path.write_text(
        text.replace('methods = ["mcedit_a"]', 'methods = ["mcedit_a", "short"]')
        + '\n[variants.short]\nmethod = "mcedit_a"\nconfig = { steps = 10 }\n'
    )
    profile = load_profile(str(path))
    assert profile.method_of("short") == ("mcedit_a", {"steps": 10})
    assert {cell.method for cell in plan(profile)} == {"base", "mcedit_a", "short"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[variants.lora]\nmethod = "mcedit_a"\n', "variant 'lora' has the name of a method"),
        ('[variants.mine]\nmethod = "mcedit_b"\n', "unknown method 'mcedit_b'"),
        ('[variants.mine]\nmethods = "mcedit_a"\n', "variants.mine.method"),
    ],
)
def test_wrong_variants_are_refused(small_profile: str, tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(Path(small_profile).read_text() + table)
    with pytest.raises(InputError, match=message):
        load_profile(str(path))


@pytest.mark.parametrize("make", [_numbers_of_candidates, _lengths])
def test_pickle_weights_are_read_where_the_user_takes_the_risk(make, micro, tmp_path: Path) -> None:
    model, tokenizer = micro
    folder = tmp_path / "pickled"
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    torch.save({name: value.clone() for name, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    profile = load_profile("micro", models=[str(folder)], fingerprints=["nlf"])
    with pytest.raises(InputError, match="only pickle weights"):
        make(profile, tmp_path / "sets", Loading("cpu"))
    assert len(make(profile, tmp_path / "sets", Loading("cpu", allow_pickle=True))) > 1
