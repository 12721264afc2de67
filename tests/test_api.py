"""The names of the Python API: what they take, what they refuse before any work, and what they show."""

import pydoc
from pathlib import Path

import pytest

import fpbench
from fpbench.errors import InputError
from fpbench.runs.profile import load_profile

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
