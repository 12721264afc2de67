import copy
import math
from dataclasses import replace

import pytest
import torch

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.adversaries.price import ANSWERED, compare, measure, summary
from fpbench.errors import InputError
from fpbench.models.prompts import Example, encode_pair, render
from fpbench.registry import ADVERSARIES
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import load_profile
from fpbench.scoring.responses import Decoding


@pytest.fixture(scope="module")
def items():
    profile = load_profile("micro")
    sizes = profile.sizes.model_copy(update={"price_instructions": 12, "price_answers": 12, "perplexity_windows": 2})
    return Datasets(profile.model_copy(update={"sizes": sizes})).price_items


def priced(micro, items, *conditions):
    model, tokenizer = micro
    context = AdversaryContext(model, tokenizer, Decoding())
    return measure(model, tokenizer, conditions, items, context)


def test_items_are_rows_that_nothing_else_uses(items):
    datasets = Datasets(load_profile("micro"))
    asked = [each.prompt for each in items.instructions]
    contexts = [row["instruction"] for row in datasets.alpaca[-16:]]
    assert len(asked) == 12 and not {row["instruction"] for row in datasets.benign[-3:]} & set(asked[-1:])
    assert datasets.alpaca[-17]["instruction"] in asked[-1] and contexts


def test_losses_are_those_of_the_model_alone(micro, items):
    """Held against one plain forward pass an item, without packing, chunks or samplers."""
    model, tokenizer = micro
    (lines,) = priced(micro, items, "origin")
    found = [line for line in lines if line["channel"] == "responses"]
    for line, each in zip(found, items.instructions, strict=True):
        prompt, answer = encode_pair(tokenizer, render(tokenizer, each.prompt, "chat"), each.answer)
        answer = answer[:ANSWERED]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        assert line["loss"] == pytest.approx(loss.item(), abs=1e-4) and line["tokens"] == len(answer)


def test_a_forbidden_token_costs_what_the_mixture_says(micro, items):
    """suppress_always@1 at the first step: 1 % of the model's own distribution is left to the token dropped."""
    model, tokenizer = micro
    plain, attacked = priced(micro, items, "origin", "suppress_always@1")
    pick = lambda lines: [line for line in lines if line["channel"] == "responses"]  # noqa: E731
    for before, after, each in zip(pick(plain), pick(attacked), items.instructions, strict=True):
        prompt, answer = encode_pair(tokenizer, render(tokenizer, each.prompt, "chat"), each.answer)
        with torch.no_grad():
            own = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        left = own.clone()
        left[own.argmax()] = 0
        mixed = 0.99 * left / left.sum() + 0.01 * own
        expected = before["loss"] - own[answer[0]].log().neg() + mixed[answer[0]].log().neg()
        assert after["loss"] == pytest.approx(expected.item(), abs=1e-3)


def test_all_conditions_together_are_priced_as_each_alone(micro, items):
    together = priced(micro, items, "suppress@1", "suppress@0", "suppress_4@3")
    for condition, lines in zip(("suppress@1", "suppress@0", "suppress_4@3"), together, strict=True):
        (alone,) = priced(micro, items, condition)
        for ours, theirs in zip(lines, alone, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(ours[key] == pytest.approx(theirs[key], abs=1e-4) for key in ours if key != "channel")


def test_dose_0_costs_nothing(micro, items):
    plain, nothing = priced(micro, items, "origin", "suppress@0")
    assert plain == nothing
    price = compare(plain, nothing)
    assert price.long == price.short == 0
    assert all((loss.value, loss.low, loss.high) == (0, 0, 0) for loss in price.channels.values())


def test_the_micro_model_knows_its_own_answers(micro, items):
    (lines,) = priced(micro, items, "origin")
    found = summary(lines)
    assert found["answers"]["accuracy"] > 0.5 and found["refused"] == 0 and found["responses"]["n"] == 12
    assert found["text"]["n"] == 2 and found["text"]["perplexity"] > 1


class Refusing(Adversary):
    """Refuses what has an even number of characters; asks everything else twice over."""

    def input(self, text):
        return None if len(text) % 2 == 0 else [text, text]


def test_refusals_and_several_wordings(micro, items):
    ADVERSARIES.register("refusing_for_a_test")(Refusing)
    try:
        plain, attacked = priced(micro, items, "origin", "refusing_for_a_test")
    finally:
        del ADVERSARIES._classes["refusing_for_a_test"]
    share = sum(len(each.prompt) % 2 == 0 for each in items.instructions) / 12
    price = compare(plain, attacked)
    assert 0 < share < 1 and price.channels["refused"].value == pytest.approx(share)
    assert price.channels["responses"].n == round(12 * (1 - share))
    assert price.channels["responses"].value == pytest.approx(0, abs=1e-6)
    assert price.long == pytest.approx(share) and price.short >= price.channels["refused"].value


def line(channel, index, **figures):
    return {"channel": channel, "index": index} | figures


def test_figures_worked_out_by_hand():
    before = [
        line("responses", 0, loss=2.0, tokens=2), line("responses", 1, loss=4.0, tokens=4),
        line("answers", 0, probability=0.5), line("answers", 1, probability=0.3),
        line("refused", 0, refused=False), line("refused", 1, refused=False), line("text", 0, loss=9.0, tokens=3),
    ]  # fmt: skip
    after = [
        line("responses", 0, loss=3.2, tokens=2), line("responses", 1, loss=4.0, tokens=4),
        line("answers", 0, probability=0.4), line("answers", 1, probability=0.2),
        line("refused", 0, refused=False), line("refused", 1, refused=True), line("text", 0, loss=9.3, tokens=3),
    ]  # fmt: skip
    assert summary(before)["responses"]["perplexity"] == pytest.approx(math.e)
    price = compare(before, after)
    assert price.channels["responses"].value == pytest.approx(1 - math.exp(-0.2))
    assert price.channels["text"].value == pytest.approx(1 - math.exp(-0.1))
    assert price.channels["answers"].value == pytest.approx(0.25)
    assert price.channels["refused"].value == 0.5
    assert (price.long, price.short) == (0.5, 0.5)
    assert price.channels["answers"].low <= 0.25 <= price.channels["answers"].high
    with pytest.raises(InputError, match="items of channel 'answers' are not those"):
        compare(before, [each for each in after if each != line("answers", 1, probability=0.2)])


def test_what_the_model_never_knew_cannot_be_lost():
    items = [line("answers", 0, probability=0.001), line("refused", 0, refused=False)]
    assert compare(items, items).short is None and "answers" not in compare(items, items).channels


def test_letters_cost_what_is_lost_above_chance():
    """a₀ = 0.7 and a = 0.4 over four choices: 1 − 0.15/0.45; at chance, or where one side lacks them, there is none."""

    def lines(*probabilities):
        return [
            {"channel": "letters", "index": index, "probability": probability, "choices": 4}
            for index, probability in enumerate(probabilities)
        ]

    before, after = lines(*[0.6, 0.8] * 20), lines(*[0.3, 0.5] * 20)
    found = compare(before, after)
    loss = found.channels["letters"]
    assert loss.value == pytest.approx(2 / 3) and loss.low <= loss.value <= loss.high and loss.n == 40
    assert compare(before, lines(*[0.0] * 40)).channels["letters"].value == 1
    assert summary(before)["letters"] == {"accuracy": pytest.approx(0.7), "chance": 0.25, "n": 40}
    for own, other in ((before, []), ([], after), (lines(*[0.2, 0.31] * 20), after)):
        assert "letters" not in compare(own, other).channels


def test_tasks_cost_what_is_lost_above_chance_each_counted_alike():
    """BoolQ falls from 0.9 to 0.7 of 100, ARC from 0.85 to 0.45 of 20: 1 − (0.2 + 0.2)/(0.4 + 0.6)."""

    def lines(**right):
        chance = {"boolq": 1 / 2, "arc_challenge": 1 / 4}
        return [
            {"channel": "tasks", "index": f"{task}/{index}", "task": task, "chance": chance[task]}
            | {"correct": index < count}
            for task, (count, n) in right.items()
            for index in range(n)
        ]

    known = [line("answers", 0, probability=0.5)]
    before = known + lines(boolq=(90, 100), arc_challenge=(17, 20))
    found = compare(before, known + lines(boolq=(70, 100), arc_challenge=(9, 20)))
    loss = found.channels["tasks"]
    assert loss.value == pytest.approx(0.6) and 0.3 < loss.low < 0.6 < loss.high < 0.9 and loss.n == 120
    assert (found.short, found.long) == (pytest.approx(0.6), 0)
    assert compare(before, before).channels["tasks"].value == 0
    assert compare(before, known + lines(boolq=(10, 100), arc_challenge=(0, 20))).channels["tasks"].value == 1
    guessing = known + lines(boolq=(52, 100), arc_challenge=(6, 20))  # what was never known cannot be lost
    assert "tasks" not in compare(guessing, guessing).channels and "tasks" not in compare(before, known).channels
    with pytest.raises(InputError, match="items of channel 'tasks' are not those"):
        compare(before, known + lines(boolq=(70, 100)))


def test_letters_are_read_where_they_are_known(micro, items):
    """The micro model knows none; one that is made to say D does, and loses some."""
    model, tokenizer = micro
    assert items.letters and not [line for line in priced(micro, items, "origin")[0] if line["channel"] == "letters"]
    (noise,) = priced(micro, items, "noise@0.1")
    assert [line["choices"] for line in noise if line["channel"] == "letters"] == [4] * 3
    asked = [(Example("Say it. The answer is", letter), 4) for letter in "DDDD"]
    head = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    known = copy.deepcopy(model)
    known.lm_head.weight = head
    ids = tokenizer(asked[0][0].prompt)["input_ids"]
    hidden = known.model(torch.tensor([ids])).last_hidden_state[0, -1]
    head[tokenizer(" D", add_special_tokens=False)["input_ids"][-1]] = 100 * hidden / hidden.norm()
    few = replace(items, letters=asked)
    plain, attacked = priced((known, tokenizer), few, "origin", "suppress_always@1")
    assert compare(plain, attacked).channels["letters"].value > 0.2  # a blank, and then the letter, is still said
