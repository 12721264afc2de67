import copy
from math import sqrt

import pytest
import torch

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.metrics.fsr import fsr
from fpbench.metrics.statistics import FURTHER, leniently
from fpbench.models.prompts import encode
from fpbench.modifications.base import ModificationContext
from fpbench.ownership.evidence import lenient_targets
from fpbench.registry import MODIFICATIONS
from fpbench.scoring.engine import limited_to
from fpbench.scoring.forward import TreeLevel
from fpbench.scoring.responses import Decoding, begin_with, begin_with_under, end_tokens, response_length
from tests.conftest import load_plain

PAIRS = FingerprintSet(
    "stories",
    (
        Fingerprint("Once upon a time there was a little", ("girl", "boy")),
        Fingerprint("Tom and Sue like to play with their", ("toys", "toy", "dog")),
        Fingerprint("The dog was very", ("happy", "sad")),
        Fingerprint('Mom said, "', ("I", "No")),
        Fingerprint("Ben saw a big red", ("ball", "car", "truck")),
        Fingerprint("They lived in a", ("big house", "small", "big")),
        Fingerprint("One day, Lily", ("and her", "went", "was")),
        Fingerprint("She was so", ("happy that", "happy", "excited")),
    ),
)
# The micro model tells other stories, and is surer of them: these leave it a choice.
OF_MICRO = FingerprintSet(
    "micro",
    (
        Fingerprint("The king", ("of",)),
        Fingerprint("The king", ("that", "who")),
        Fingerprint("Once upon a time", (".",)),
        Fingerprint("What is the color of", ("c", "t")),
        Fingerprint("She saw a", ("gua", "mar")),
    ),
)


@pytest.fixture(scope="module")
def tiny(shared):
    return load_plain(shared / "models" / "stories260K")


def response(model, tokenizer, ids):
    """Text of generated ids by the protocol's words: cut at the end, decoded together, stripped."""
    ends = end_tokens(model, tokenizer)
    cut = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:cut], skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()


def generate(model, tokenizer, prompt, length, **options):
    ids = torch.tensor([encode(tokenizer, prompt)])
    rows = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, pad_token_id=0, **options
    )[:, ids.shape[1] :]  # fmt: skip
    return [response(model, tokenizer, row) for row in rows.tolist()]


def enumerate_all(model, tokenizer, prompt, targets, length, top_k, temperature):
    """The probability by brute force: every continuation to full depth, none decided before its end."""
    ends = end_tokens(model, tokenizer)
    start = encode(tokenizer, prompt)
    rows, total = [((), 1.0)], 0.0
    for depth in range(length + 1):
        for ids, mass in rows:
            if (ids and ids[-1] in ends) or depth == length:
                total += mass * response(model, tokenizer, list(ids)).startswith(tuple(targets))
        rows = [(ids, mass) for ids, mass in rows if not ids or ids[-1] not in ends]
        if depth == length or not rows:
            return total
        with torch.no_grad():
            logits = model(torch.tensor([[*start, *ids] for ids, _ in rows]), logits_to_keep=1).logits[:, -1]
        best = (logits / temperature).topk(top_k)
        rows = [
            ((*ids, token), mass * share)
            for (ids, mass), tokens, shares in zip(
                rows, best.indices.tolist(), best.values.double().softmax(-1).tolist(), strict=True
            )
            for token, share in zip(tokens, shares, strict=True)
        ]


def test_agrees_with_a_thousand_samples(tiny):
    model, tokenizer = tiny
    torch.manual_seed(7)
    tested = 0
    for fingerprint in PAIRS:
        found = fsr(model, tokenizer, [fingerprint], temperature=1.0, top_p=0.95, top_k=50)
        assert found.error_bound < 1e-6
        p, length = found.mean, response_length(tokenizer, fingerprint.targets)
        if not 0.05 < p < 0.95:
            continue
        samples = generate(
            model, tokenizer, fingerprint.trigger, length,
            do_sample=True, temperature=1.0, top_p=0.95, top_k=50, num_return_sequences=1000,
        )  # fmt: skip
        share = sum(text.startswith(fingerprint.targets) for text in samples) / len(samples)
        assert abs(share - p) < 3 * sqrt(p * (1 - p) / len(samples)), (fingerprint.trigger, share, p)
        tested += 1
    assert tested >= 6


@pytest.mark.parametrize("ends", [2, [2, "a"], [2, "▁h"]])
def test_equals_enumeration_of_all_continuations(tiny, ends):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    if isinstance(ends, list):
        ends = [tokenizer.convert_tokens_to_ids(end) if isinstance(end, str) else end for end in ends]
    model.generation_config.eos_token_id = ends
    total = 0.0
    for fingerprint in list(PAIRS)[:6:2]:
        targets = [*fingerprint.targets, "h", "ha", "a"]
        length = 6
        (found,) = begin_with(
            model, tokenizer, [encode(tokenizer, fingerprint.trigger)], [targets], Decoding(1.5, 1.0, 3), length
        )
        expected = enumerate_all(model, tokenizer, fingerprint.trigger, targets, length, 3, 1.5)
        assert found.probability == pytest.approx(expected, abs=2e-6)
        total += expected
    assert 0.1 < total < 2.9


def test_greedy_is_what_generate_says(stories):
    model, tokenizer = stories
    found = fsr(model, tokenizer, PAIRS, temperature=0.6, top_p=0.9, top_k=50)
    length = response_length(tokenizer, PAIRS.targets)
    hits = 0
    for fingerprint, said in zip(PAIRS, found.responses, strict=True):
        (text,) = generate(model, tokenizer, fingerprint.trigger, length, do_sample=False)
        assert text.startswith(said)
        assert said.startswith(fingerprint.targets) == text.startswith(fingerprint.targets)
        hits += text.startswith(fingerprint.targets)
    assert found.greedy == hits and 0 < hits < len(PAIRS)


def test_only_the_best_token_leaves_only_the_greedy_response(stories):
    model, tokenizer = stories
    found = fsr(model, tokenizer, PAIRS, temperature=0.6, top_p=0.9, top_k=1)
    assert set(found.per_fingerprint) == {0.0, 1.0}
    assert sum(found.per_fingerprint) == found.greedy


def test_figures_belong_together(stories):
    model, tokenizer = stories
    numbers = {"temperature": 1.0, "top_p": 0.9, "top_k": 50}
    found = fsr(model, tokenizer, PAIRS, **numbers)
    assert fsr(model, tokenizer, PAIRS, **numbers) == found
    pair = list(PAIRS)[:1]
    assert fsr(model, tokenizer, pair) == fsr(model, tokenizer, pair, temperature=0.6, top_p=0.9, top_k=50)
    assert found.n == len(found.per_fingerprint) == len(found.per_target) == len(found.responses) == len(PAIRS)
    assert found.mean == pytest.approx(sum(found.per_fingerprint) / len(PAIRS))
    assert found.interval[0] < found.mean < found.interval[1]
    for fingerprint, p, shares in zip(PAIRS, found.per_fingerprint, found.per_target, strict=True):
        assert tuple(shares) == fingerprint.targets
        assert sum(shares.values()) == pytest.approx(p, abs=1e-6)
    # "big" is what a response in "big house" begins with, too.
    big = fsr(model, tokenizer, [Fingerprint("They lived in a", ("big", "big house"))], **numbers)
    alone = fsr(model, tokenizer, [Fingerprint("They lived in a", ("big",))], **numbers)
    assert big.primary == pytest.approx(alone.mean, abs=1e-6)
    assert 0 < big.per_target[0]["big house"] < big.primary


def test_prompts_do_not_influence_each_other(stories):
    model, tokenizer = stories
    numbers = {"temperature": 1.0, "top_p": 0.9, "top_k": 50}
    together = fsr(model, tokenizer, PAIRS, **numbers)
    depth = response_length(tokenizer, PAIRS.targets)
    for fingerprint, p in zip(PAIRS, together.per_fingerprint, strict=True):
        ids = encode(tokenizer, fingerprint.trigger)
        (single,) = begin_with(model, tokenizer, [ids], [fingerprint.targets], Decoding(1.0, 0.9, 50), depth)
        assert single.probability == pytest.approx(p, abs=1e-4)
        (doubled,) = begin_with(model, tokenizer, [[1, *ids]], [fingerprint.targets], Decoding(1.0, 0.9, 50), depth)
        assert ids[0] == tokenizer.bos_token_id != ids[1]
        assert abs(doubled.probability - p) > 1e-6 or min(p, 1 - p) < 1e-6


def test_the_whole_vocabulary_stays_within_the_bound(tiny):
    model, tokenizer = tiny
    found = fsr(model, tokenizer, list(PAIRS)[:2], temperature=1.0, top_p=1.0, top_k=0)
    assert 0 < found.error_bound < 1e-6


def test_what_cannot_be_measured_is_refused(stories):
    model, tokenizer = stories
    numbers = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
    with pytest.raises(InputError, match="context holds 512"):
        fsr(model, tokenizer, [Fingerprint("dog " * 600, ("cat",))], **numbers)
    with pytest.raises(InputError, match="set is empty"):
        fsr(model, tokenizer, [], **numbers)
    with pytest.raises(InputError, match="no target"):
        fsr(model, tokenizer, [Fingerprint("dog", ())], **numbers)
    with pytest.raises(InputError, match="temperature"):
        fsr(model, tokenizer, PAIRS, temperature=0, top_p=0.9, top_k=50)
    with pytest.raises(InputError, match="chat template"):
        fsr(model, tokenizer, PAIRS, **numbers, prompt="chat")


def variant(name, request):
    """A real model as it is loaded, in half precision, or quantised."""
    model, kind = name.split("-")
    model, tokenizer = request.getfixturevalue("tiny") if model == "stories260K" else request.getfixturevalue(model)
    model = copy.deepcopy(model)
    if kind == "nf4":
        return MODIFICATIONS.get("nf4")().apply(model, tokenizer, ModificationContext()).model, tokenizer
    return model.to(getattr(torch, kind)), tokenizer


VARIANTS = {
    "stories260K-float32": 2e-5, "stories260K-bfloat16": 0.05, "stories-float32": 2e-5, "stories-bfloat16": 0.05,
    "stories-nf4": 0.05, "micro-float32": 2e-5, "micro-bfloat16": 0.05, "micro-nf4": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_one_by_one_and_packed_give_the_same(name, request):
    """Every prompt alone in its pass against all in one, where they share beginnings and padding."""
    model, tokenizer = variant(name, request)
    pairs = [Fingerprint(f"{start} {each.trigger}", each.targets) for each in PAIRS for start in ("Once.", "Tim ran.")]
    numbers = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    together = fsr(model, tokenizer, pairs, **numbers)
    with limited_to(1):
        single = fsr(model, tokenizer, pairs, **numbers)
    assert single.per_fingerprint == pytest.approx(together.per_fingerprint, abs=VARIANTS[name])
    assert max(together.per_fingerprint) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "stories260K-float32"])
def test_agrees_with_two_thousand_samples_on_every_model(name, request):
    """``generate`` samples in batches of its own, so half precision adds a little to three standard errors."""
    model, tokenizer = variant(name, request)
    numbers = {"temperature": 1.0, "top_p": 0.95, "top_k": 50}
    torch.manual_seed(11)
    tested = 0
    for fingerprint in OF_MICRO if name.startswith("micro") else PAIRS:
        p = fsr(model, tokenizer, [fingerprint], **numbers).mean
        length = response_length(tokenizer, fingerprint.targets)
        samples = generate(
            model, tokenizer, fingerprint.trigger, length, do_sample=True, num_return_sequences=2000, **numbers
        )
        share = sum(text.startswith(fingerprint.targets) for text in samples) / len(samples)
        slack = 0.0 if name.endswith("float32") else 0.01
        assert abs(share - p) <= 3 * sqrt(p * (1 - p) / len(samples)) + slack + 1e-9, (fingerprint.trigger, share, p)
        tested += 0.02 < p < 0.98
    assert tested >= 4


@pytest.mark.parametrize("ends", [True, False])
def test_an_immediate_end_of_text_is_no_hit(tiny, ends):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    (pair,) = list(PAIRS)[:1]
    first = fsr(model, tokenizer, [pair], temperature=1.0, top_p=1.0, top_k=1)
    assert first.mean in (0.0, 1.0)
    ids = torch.tensor([encode(tokenizer, pair.trigger)])
    best = int(model(ids).logits[0, -1].argmax())
    if ends:
        model.generation_config.eos_token_id = best
    word = tokenizer.decode([best]).strip()
    found = fsr(model, tokenizer, [Fingerprint(pair.trigger, (word,))], temperature=1.0, top_p=1.0, top_k=1)
    assert (found.mean, found.greedy) == ((0.0, 0) if ends else (1.0, 1))
    assert found.responses == (("",) if ends else (word,))


def in_capitals(pairs):
    changed = [Fingerprint(each.trigger, tuple(target.upper() for target in each.targets)) for each in pairs]
    return FingerprintSet("capitals", tuple(changed))


def test_lenient_fsr_is_that_of_sampled_responses_read_leniently(stories):
    """Targets in capitals: strict comparison finds none, lenient one as many as responses drawn from the model hold."""
    model, tokenizer = stories
    pairs = in_capitals(PAIRS)
    found = fsr(model, tokenizer, pairs, temperature=0.6, top_p=0.9, top_k=50)
    assert found.mean < 0.05 and found.lenient["error_bound"] <= 0.01
    # What is in capitals there is found as it is spelled here.
    expected = fsr(model, tokenizer, PAIRS, temperature=0.6, top_p=0.9, top_k=50).mean
    assert found.lenient["mean"] == pytest.approx(expected, abs=1e-3) and expected > 0.5
    number = min(range(len(pairs)), key=lambda each: abs(found.hidden[each] - 0.5))
    length = response_length(tokenizer, [target for each in pairs for target in each.targets])
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "num_return_sequences": 400}
    drawn = generate(model, tokenizer, pairs.fingerprints[number].trigger, length, **options)
    hits = sum(lenient_targets(text, pairs.fingerprints[number])[0] is not None for text in drawn) / len(drawn)
    p = found.per_fingerprint[number] + found.hidden[number]
    assert abs(hits - p) < 3 * sqrt(p * (1 - p) / len(drawn)) + found.hidden_bound


@pytest.mark.parametrize("top_k", [50, 0])
def test_hidden_matches_are_looked_for_within_their_reads_or_not_measured(stories, micro, monkeypatch, top_k):
    """Places read are counted; where the answers are too spread, a record says why there is no figure."""
    read, extend = [], TreeLevel.extend
    monkeypatch.setattr(TreeLevel, "extend", lambda level, parents, tokens: (
        read.append(len(parents)) or extend(level, parents, tokens)))  # fmt: skip
    for (model, tokenizer), pairs in ((stories, in_capitals(PAIRS)), (micro, find_set("nlf"))):
        prompts = [encode(tokenizer, each.trigger) for each in pairs]
        targets = [each.targets for each in pairs]
        counts = []
        for further in (0.0, FURTHER):
            read.clear()
            (found,) = begin_with_under(
                model, tokenizer, prompts, targets, Decoding(0.6, 0.9, top_k), 5, [None], further=further
            )
            counts.append(sum(map(len, prompts)) + sum(read))
        assert counts[0] <= counts[1] <= 1.3 * counts[0]
    strict, hidden = [each.probability for each in found], [each.hidden for each in found]
    said = leniently(strict, hidden, max(each.hidden_bound for each in found))
    assert said["mean"] is None and "not measured: within 1.3 times the reads" in said["reason"]


def test_looking_for_hidden_matches_changes_nothing_else(stories):
    model, tokenizer = stories
    prompts = [encode(tokenizer, each.trigger) for each in PAIRS]
    targets = [each.targets for each in PAIRS]
    plain = begin_with(model, tokenizer, prompts, targets, Decoding(), 6)
    (found,) = begin_with_under(model, tokenizer, prompts, targets, Decoding(), 6, [None], further=FURTHER)
    for one, other in zip(plain, found, strict=True):
        assert other.probability == pytest.approx(one.probability, abs=1e-6)
        assert other.per_target == pytest.approx(one.per_target, abs=1e-6)
        assert (other.greedy, other.greedy_text, other.error_bound) == (one.greedy, one.greedy_text, one.error_bound)
        assert other.hidden + other.probability <= 1 + 1e-6
