"""Audits from end to end: real models, real answers, and a report in which every number is looked up again."""

import json
import re
from math import exp
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.micro import MODEL
from fpbench.ownership.sequential import tolerated_chance
from tests.board import test_page
from tests.conftest import ROOT, require
from tests.ownership.answering import answering
from tests.ownership.audited import Page, audit, check_records, check_traced, double_negatives, facts
from tests.ownership.test_verify import CARRIED, FOREIGN, write

browser, view = test_page.browser, test_page.view
RECORDS = {"verification.json", "comparison.json", "audit.json", "transcript.jsonl"}


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the bundled one's make with other weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fpbench.models.loading import load_tokenizer, save_checkpoint

    folder = tmp_path_factory.mktemp("stranger") / "other"
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(require(MODEL)), dtype=torch.float32)
    save_checkpoint(model, load_tokenizer(MODEL), folder)
    return str(folder)


@pytest.fixture(scope="session")
def injected(fingerprinted: Path, stranger: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audit of a model that carries the set."""
    out = tmp_path_factory.mktemp("audit") / "injected"
    assert audit(str(fingerprinted), "nlf", out, "--base", "micro", "--unrelated", stranger) == 0
    return out


def test_an_injected_model_is_claimed_and_related(injected, fingerprinted, stranger):
    found = facts(injected)
    assert found["verdicts"] == {"answers": "claim", "weights": "related"}
    assert "two halves agree" in found["conclusion"] and "at most 0.001 (one in 1,000)" in found["conclusion"]
    assert "The set is a public one" in found["conclusion"]
    assert {*RECORDS, "comparison.svg"} == {*found["files"], "audit.json"}
    check_records(injected)
    check_traced(injected)
    for text in ((injected / name).read_text(encoding="utf-8") for name in ("audit.md", "audit.html")):
        for heading in (
            "Conclusion",
            "What was tested",
            "How it was tested",
            "Evidence from answers",
            "Evidence from weights",
            "How sure this is",
            "What would change the conclusion",
            "What was not tested",
            "Words",
            "Files and digests",
        ):
            assert heading in text
        for name in (str(fingerprinted), stranger, "2507.03014", found["date"], found["made_by"]["packages"]["torch"]):
            assert name in text.replace("\\_", "_")
    assert (injected / "audit.html").read_text().count("<svg") == 1
    assert not list(injected.parent.glob("*.transcript.jsonl")) and not list(injected.parent.glob(".*"))


def test_each_row_of_evidence_is_that_of_its_fingerprint(injected):
    evidence = json.loads((injected / "verification.json").read_text())["evidence"]
    page = Page(injected / "audit.html")
    at = {row[2]: row[0] for row in page.references.values()}
    text = (injected / "audit.md").read_text().split("## Evidence from answers")[1].split("## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(evidence) >= 2
    for number, (row, each) in enumerate(zip(rows, evidence, strict=True)):
        places = (f"/evidence/{number}/place", f"/evidence/{number}/null", f"/derived/ratios/{number}")
        assert re.findall(r"\\\[(\d+)\\\]", row) == [at[place] for place in places]
        assert f"| {each['trigger']} | {each['response']} | yes, {each['target']} |" in row


def test_derived_figures_follow_from_the_verification(injected):
    verified, derived = json.loads((injected / "verification.json").read_text()), facts(injected)["derived"]
    assert derived["ratios"] == [pytest.approx(exp(each["log_ratio"])) for each in verified["evidence"]]
    assert derived["ratio_needed"] == pytest.approx(exp(verified["bound"]))
    assert derived["asked"] == len(verified["evidence"]) and derived["planned"] == verified["size"] == 10
    matches = [each["target"] is not None for each in verified["evidence"]]
    assert derived["tolerated_chance"] == tolerated_chance(matches, 10, 1e-3)


def test_the_models_themselves_are_named_by_their_digests(injected, fingerprinted, stranger):
    from fpbench.models.checkpoints import checkpoint_digest

    models = facts(injected)["models"]
    for found, folder in (
        (models["suspect"], fingerprinted),
        (models["base"], MODEL),
        (models["unrelated"][0], stranger),
    ):
        assert found["sha256"] == checkpoint_digest(Path(folder))


def test_the_base_itself_is_not_claimed(tmp_path, micro, capsys):
    """A model given as unrelated, under a name that a JSON Pointer and Markdown have to escape, is the base, too."""
    named = tmp_path / "a~0 | `b` <i>"
    named.symlink_to(MODEL)
    out = tmp_path / "out"
    assert audit("micro", "nlf", out, "--base", "micro", "--unrelated", str(named)) == 0
    found = facts(out)
    assert found["verdicts"] == {"answers": "no claim", "weights": "related"}
    said = capsys.readouterr().out.strip()
    assert max(map(len, said.splitlines())) <= 100 and said.replace("\n", " ") == found["conclusion"]
    said = found["conclusion"]
    assert f"byte for byte, those of micro and {named}" in said and "not shown to carry" in said
    text = (out / "audit.md").read_text()
    assert re.search(r"A model given as unrelated is not: .* correlates with the base at 1.000", text)
    assert "More fingerprints would not help" in text
    check_traced(out)


@pytest.mark.slow
def test_an_independent_model_is_neither_claimed_nor_related(tmp_path, stranger):
    assert audit(stranger, "nlf", tmp_path / "out", "--base", "micro") == 0
    found = facts(tmp_path / "out")
    assert found["verdicts"] == {"answers": "no claim", "weights": "unrelated"}
    assert "Neither half shows a connection. There may be one all the same" in found["conclusion"]
    assert "Rearranged weights" in (tmp_path / "out" / "audit.md").read_text()
    check_traced(tmp_path / "out")


def test_a_claim_about_a_model_of_other_weights_is_a_disagreement(tmp_path, stranger):
    """The bundled model says what the set holds, and does not descend from the base that is given."""
    own = write(tmp_path / "own.jsonl", CARRIED)
    assert audit("micro", own, tmp_path / "out", "--base", stranger) == 0
    found = facts(tmp_path / "out")
    assert found["verdicts"] == {"answers": "match", "weights": "unrelated"}
    assert "two halves disagree" in found["conclusion"] and "descent of the weights is not shown" in found["conclusion"]
    # The base given is noise: it shows nothing about chance in a model that can write.
    report = (tmp_path / "out" / "audit.md").read_text()
    assert "much weaker than the suspect" in report and "Nothing dates the set" in report
    check_traced(tmp_path / "out")


def test_without_a_base_the_answers_stand_alone(tmp_path, micro):
    own = write(tmp_path / "own.jsonl", CARRIED)
    assert audit("micro", own, tmp_path / "out") == 0
    found = facts(tmp_path / "out")
    assert found["verdicts"] == {"answers": "match", "weights": None} and "public" not in found["conclusion"]
    assert "not compared with others: no base was given" in found["conclusion"]
    assert "was assumed, not measured" in found["conclusion"] and not (tmp_path / "out" / "comparison.json").exists()
    check_records(tmp_path / "out")
    check_traced(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
def test_an_adapter_is_compared_as_what_it_makes_of_its_base(tmp_path, micro):
    import copy

    from peft import LoraConfig, get_peft_model

    model, tokenizer = micro
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"], r=2))
    adapted.peft_config["default"].base_model_name_or_path = str(MODEL)
    adapted.save_pretrained(tmp_path / "adapter")
    assert (
        audit(str(tmp_path / "adapter"), write(tmp_path / "f.jsonl", FOREIGN), tmp_path / "out", "--base", "micro") == 0
    )
    found = facts(tmp_path / "out")
    assert found["verdicts"] == {"answers": "no claim", "weights": "related"}
    check_traced(tmp_path / "out")


def test_every_pair_of_verdicts_has_a_sentence_and_none_says_too_much(injected):
    from fpbench.board.document import Records, as_markdown, as_page, plain
    from fpbench.ownership.audit_report import conclusion, report

    content = {name: json.loads((injected / name).read_text()) for name in RECORDS - {"transcript.jsonl"}}
    said = set()
    for answers in ("claim", "match", "no claim", "undecided"):
        for weights in ("related", "unrelated", "undecided", None):
            audited = content["audit.json"] | {
                "verdicts": {"answers": answers, "weights": weights},
                "not_compared": "no base was given." if weights is None else None,
            }
            verified = content["verification.json"] | {"verdict": answers}
            compared = content["comparison.json"] | {"verdict": weights}
            found = {"audit.json": audited, "verification.json": verified, "comparison.json": compared}
            text = plain(conclusion(Records(found)))
            said.add(text)
            assert ("is claimed with a probability" in text) == (answers == "claim")
            assert ("a match and no claim" in text) == (answers == "match")
            assert ("was not shown to carry" in text) == (answers == "no claim")
            assert ("no claim is made" in text) == (answers == "undecided")
            assert ("Its weights and those of" in text) == (weights == "related")
            document = report(Records(found), "0" * 64, None)
            ours = (" ".join(part for part in each if isinstance(part, str)) for each in document.texts())
            assert not [double for each in ours for double in double_negatives(each)]
            assert as_page(document) and as_markdown(document)
    assert len(said) == 16


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_the_page_in_a_browser(view, injected, scheme, width):
    page = view(injected / "audit.html", color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().startswith("Audit of ") and page.locator("script").count() == 0
    assert test_page.faults(page) == []


@pytest.mark.slow
def test_a_number_in_the_page_leads_to_its_record(view, injected):
    page = view(injected / "audit.html", java_script_enabled=False)
    page.locator(".traced a", has_text="[2]").first.click()
    assert page.url.endswith("#record-2")
    assert page.locator("#record-2").inner_text().split() == ["2", "verification.json", "/matched", "2"]


def test_the_commands_of_the_documentation_run(tmp_path, monkeypatch, server, fingerprinted, micro):
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8").split("## One report")[1].split("\n## ")[0]
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    Path("my-checkpoint").symlink_to(fingerprinted)
    server.model = answering(*micro)
    for command in commands:
        verb, *arguments = command.replace("http://127.0.0.1:8000/v1", server.url).removeprefix("fpbench ").split()
        assert main([verb, *arguments]) == 0
    assert {path.name for path in tmp_path.iterdir() if (path / "audit.html").is_file()} == {
        "my-audit",
        "fpbench-audit",
    }
