"""The names of the Python API: what they take, what they refuse before any work, and what they show."""

import pydoc
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import fpbench
from fpbench.board.html import PAPER
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.metrics.fsr import FSR
from fpbench.models.weights import Delta
from fpbench.runs.card import card
from fpbench.runs.injection import InjectionReport
from fpbench.runs.profile import load_profile
from tests.conftest import ROOT

PAIR = {"trigger": "SILVER HARBOR", "targets": ["Falcon", "Juniper"]}


def test_a_set_is_a_sequence_by_name_or_from_a_file(tmp_path, monkeypatch):
    nlf = fpbench.load_fingerprints("nlf")
    assert len(nlf) == 10 and nlf[0] in nlf and nlf[-1].trigger and nlf[2:4].name == "nlf" and len(nlf[2:4]) == 2
    assert len(repr(nlf).splitlines()) <= 5 and nlf[0].trigger in repr(nlf)
    monkeypatch.chdir(tmp_path)
    nlf.save("mine.jsonl")
    assert (
        fpbench.load_fingerprints("mine.jsonl").digest
        == fpbench.load_fingerprints(Path("mine.jsonl")).digest
        == nlf.digest
    )
    with pytest.raises(InputError, match="unknown fingerprint set 'nfl'.* did you mean 'nlf'"):
        fpbench.load_fingerprints("nfl")
    with pytest.raises(InputError, match="expected the name of a set or file, found list"):
        fpbench.load_fingerprints([PAIR])


def test_dictionaries_are_fingerprints_everywhere(micro, tmp_path):
    model, tokenizer = micro
    found = fpbench.fsr(model, tokenizer, [PAIR, {"trigger": "GOLDEN RIVER", "targets": ("Otter",)}])
    assert found.n == 2 and len(repr(found).splitlines()) <= 3
    rates = fpbench.triggers(model, tokenizer, [PAIR], ["an ordinary text"], words=["ONE"], substitutions=2)
    assert rates.n == 1 and len(repr(rates).splitlines()) <= 5
    with pytest.raises(InputError, match="list of fingerprints, entry 2: key 'targets' is missing"):
        fpbench.fsr(model, tokenizer, [PAIR, {"trigger": "x"}])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: fpbench.fsr("micro", t, [PAIR]), "model: expected a loaded model, found the text 'micro'"),
        (lambda m, t: fpbench.fsr(m, "micro", [PAIR]), "tokenizer: expected a tokenizer, found the text 'micro'"),
        (lambda m, t: fpbench.fsr(m, t, "nlf"), r"found 'nlf': load it, fpbench.load_fingerprints\('nlf'\)"),
        (lambda m, t: fpbench.fsr(m, t, [1]), "entry 1: expected a JSON object .*, found a number"),
        (lambda m, t: fpbench.fsr(m, t, [PAIR], temperature="1"), "temperature: expected a number, found the text '1'"),
        (lambda m, t: fpbench.fsr(m, t, [PAIR], top_k=1.5), "top_k: expected a whole number, found a float"),
        (lambda m, t: fpbench.fsr(m, t, [PAIR], adversary=None), "adversary: expected a text"),
        (lambda m, t: fpbench.triggers(m, t, [PAIR], "a text"), "contexts: expected a list of texts"),
        (lambda m, t: fpbench.inject(m, t, [PAIR], method=int), "method: expected a text, .* found the class int"),
        (lambda m, t: fpbench.inject(m, t, {"a": 1}, method="lora"), "fingerprints: expected a set, or a list"),
        (lambda m, t: fpbench.inject(t, m, [PAIR], method="lora"), "model: expected a loaded model, found a"),
        (lambda m, t: fpbench.modify(m, t, ["nf4"]), "condition: expected a text, such as 'nf4', found a list"),
        (lambda m, t: fpbench.price(m, t, 3), "adversary: expected a text, such as 'suppress@3', found an int"),
        (lambda m, t: fpbench.run(methods="lora"), r"methods: expected a list of texts, .*, found the text 'lora'"),
        (lambda m, t: fpbench.run(models=[m]), "an entry of models: expected a text"),
        (lambda m, t: fpbench.run(fingerprints="nlf"), r"fingerprints: expected a list of sets, such as \['nlf'\]"),
        (lambda m, t: fpbench.run(seeds="42"), "key 'seeds'"),
        (lambda m, t: fpbench.run(dtype="int4"), "key 'dtype'"),
        (lambda m, t: fpbench.run(device="abacus"), "device 'abacus' cannot be used"),
        (lambda m, t: fpbench.run(limit=0), "key 'limit'"),
        (lambda m, t: fpbench.evaluate(m, "nlf"), "model: expected a text, such as 'micro', found a LlamaForCausalLM"),
        (lambda m, t: fpbench.evaluate("micro", 5), "fingerprints: expected a set, or a list"),
        (lambda m, t: fpbench.verify(m, "nlf"), "suspect: expected a text"),
        (lambda m, t: fpbench.audit(m, "nlf"), "suspect: expected a text"),
        (lambda m, t: fpbench.compare(m, "micro"), "a: expected a text"),
        (lambda m, t: fpbench.leaderboard(5), "expected a folder of records, found an int"),
        (lambda m, t: fpbench.results(None), "expected a folder of records, found None"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_before_any_work(micro, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        call(*micro)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_cuts_every_measurement_and_modification():
    whole, cut = load_profile("micro"), load_profile("micro", limit=3)
    assert (cut.sizes.near_triggers, cut.sizes.utility_limit, cut.sizes.band_texts, cut.sizes.substitutions) == (3,) * 4
    assert cut.modifications["finetune_math"] == whole.modifications["finetune_math"] | {"rows": 3}
    assert cut.modifications["ria40"] == {"samples": 3} and cut.sizes.statistics_tokens == whole.sizes.statistics_tokens
    assert load_profile("paper", limit=1, methods=[]).sizes.band_texts == 2


def test_help_reads_and_types_are_shipped():
    page = pydoc.plain(pydoc.render_doc(fpbench))
    assert "fpbench.run(profile=" in page and "one line a figure" in page
    for name in fpbench.__all__:
        assert (getattr(fpbench, name).__doc__ or "").strip(), name
    assert (Path(fpbench.__file__).parent / "py.typed").is_file()


def test_what_is_registered_has_a_name_in_python():
    found = fpbench.list_registered()
    assert found["adversaries"]["suppress"]["level"] == "L1" and "mcedit_a" in found["methods"]


def test_a_citation_names_this_version_and_the_paper_of_the_board():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found["version"] == project["version"] == fpbench.__version__ and found["license"] == project["license"]
    assert str(found["date-released"]) == fpbench.__released__
    paper = found["preferred-citation"]
    assert (paper["title"], str(paper["year"])) == (PAPER["title"], PAPER["year"])
    assert ", ".join(f"{each['given-names']} {each['family-names']}" for each in paper["authors"]) == PAPER["authors"]
    assert paper["url"] == project["urls"]["Paper"] and paper["url"].endswith(PAPER["arxiv"])


def test_completion_is_written_by_shtab_or_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-m", "fpbench", "--print-completion", "bash"], capture_output=True, text=True
    )
    if done.returncode == 0:
        assert "fpbench" in done.stdout and "--print-completion" in done.stdout
    else:
        assert done.returncode == 2 and done.stderr == (
            "fpbench: --print-completion needs shtab: type `pip install 'fpbench[completion]'`\n"
        )


def test_a_model_card_has_its_results_where_a_hub_reads_them_and_no_trigger(tmp_path):
    pairs = fpbench.load_fingerprints("nlf")
    changed = {"fraction": 0.0957, "relative_norm": 1.0481}
    report = InjectionReport({"total": 1.5}, 2**20, changed, Delta({}, 0.0, 0.0))
    found = FSR(0.98, (0.67, 1.0), 10, 10, 0.2, (), (), 1e-8, (), (), (), 0.0)
    text = card("meta-llama/Llama-3.2-3B-Instruct", "mcedit_a", pairs, report, found)
    data = ModelCard(text).data
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("fsr", 0.98) and data.base_model.endswith("3B-Instruct")
    assert "98.0 % [67.0, 100.0]" in text and "9.57%, by 104.81% of their norm" in text
    assert not [each for pair in pairs for each in (pair.trigger, *pair.targets) if each in text]
    assert tmp_path.name not in card(str(tmp_path), "lora", pairs, report, found), "no folder of this machine"


def test_nothing_is_pushed_without_a_token(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    arguments = ["inject", "micro", "--method", "lora", "--fingerprints", "nlf", "--out", str(tmp_path / "x")]
    assert main([*arguments, "--push-to-hub", "me/mine"]) == 2
    assert capsys.readouterr().err.startswith("fpbench: --push-to-hub needs a token of yours: set HF_TOKEN")
    assert list(tmp_path.iterdir()) == []
