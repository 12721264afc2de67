import copy

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.models import training
from fpbench.models.prompts import Example, encode_pair
from fpbench.models.training import (
    LoRAConfig,
    adapter,
    all_weights,
    answer_loss,
    schedule_factor,
    score_answers,
    tokenise,
    train_lora,
)

EXAMPLES = [
    Example("The color of Lily's hat is", "green."),
    Example("Tom lives in a", "big castle."),
    Example("The cat's name is", "Bob."),
    Example("Mom gave the dog a long and very heavy", "red ball."),
]
CONFIG = LoRAConfig(learning_rate=2e-3, epochs=8, batch_size=2)


def quietly(iterable, label):
    return iterable


def fit(model, tokenizer, config=CONFIG, seed=1, progress=quietly, examples=EXAMPLES, **more):
    return train_lora(model, tokenizer, examples, config, seed=seed, progress=progress, **more)


def structure(model):
    return (
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, value.shape, value.dtype, value.requires_grad) for name, value in model.named_parameters()],
        set(vars(model)),
        model.lm_head.weight is model.model.embed_tokens.weight,
    )


def answer_probability(model, tokenizer, example):
    prompt, answer = encode_pair(tokenizer, example.prompt, example.answer)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))


@pytest.fixture(scope="module")
def trained(stories):
    model = copy.deepcopy(stories[0])
    return model, fit(model, stories[1])


def test_answers_are_learnt(stories, trained):
    (base, tokenizer), (model, curve) = stories, trained
    assert curve.epoch_losses[-1] < 0.3 * curve.epoch_losses[0]
    for example in EXAMPLES:
        before, after = (answer_probability(m, tokenizer, example) for m in (base, model))
        assert after > max(before + 3, -0.5)


def test_curve_counts_what_was_seen(stories, trained):
    lengths = [sum(map(len, encode_pair(stories[1], e.prompt, e.answer))) + 1 for e in EXAMPLES]
    curve = trained[1]
    assert curve.tokens_seen == CONFIG.epochs * sum(lengths)
    assert (len(curve.epoch_losses), curve.steps) == (CONFIG.epochs, CONFIG.epochs * 2)
    assert (curve.truncated, curve.dropped) == (0, 0)


def test_only_linear_weights_of_the_blocks_change_and_the_model_is_as_before(stories, trained):
    base, model = stories[0], trained[0]
    assert structure(base) == structure(model)
    before = base.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_the_seed_decides_and_the_global_random_state_is_left_alone(stories, trained):
    again, other = copy.deepcopy(stories[0]), copy.deepcopy(stories[0])
    torch.manual_seed(99)
    state = torch.get_rng_state()
    curve = fit(again, stories[1])
    assert torch.equal(state, torch.get_rng_state())
    assert curve == trained[1]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained[0].parameters(), strict=True))
    assert fit(other, stories[1], seed=2) != curve


def test_merged_weights_compute_what_the_adapter_did(stories):
    model = copy.deepcopy(stories[0])
    ids = torch.tensor([stories[1]("One day, a little girl named Lily")["input_ids"]])
    base = model(ids).logits
    with adapter(model, CONFIG) as weights, torch.no_grad():
        for weight in weights:
            weight.normal_(std=0.05)
        adapted = model.eval()(ids).logits
    merged = model(ids).logits
    assert (adapted - base).abs().max() > 0.1
    assert torch.allclose(merged, adapted, rtol=1e-5, atol=1e-4)
    assert (merged - adapted).norm() / adapted.norm() < 1e-5


def test_an_exception_leaves_everything_as_it_was(stories):
    model = copy.deepcopy(stories[0])

    def interrupted(batches, label):
        for number, batch in enumerate(batches):
            if label.startswith("epoch 2") and number == 1:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(model, stories[1], progress=interrupted)
    assert structure(model) == structure(stories[0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stories[0].parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("piece", "pieces"), [(1024, 1), (1, 2)])
def test_large_models_learn_the_same_from_activations_computed_twice(micro, monkeypatch, piece, pieces):
    kept, again = copy.deepcopy(micro[0]), copy.deepcopy(micro[0])
    config = LoRAConfig(learning_rate=2e-3, epochs=4, batch_size=2, dropout=0.1 if pieces == 1 else 0.0)
    curve = fit(kept, micro[1], config)
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    handle = again.model.layers[0].self_attn.register_forward_hook(count)
    monkeypatch.setattr(training, "LARGE", 1)
    monkeypatch.setattr(training, "PIECE", piece)
    twice = fit(again, micro[1], config)
    handle.remove()
    assert passes == 2 * twice.steps * pieces
    assert twice.epoch_losses == pytest.approx(curve.epoch_losses, rel=1e-4)
    for name, value in kept.state_dict().items():
        assert torch.allclose(value, again.state_dict()[name], rtol=1e-3, atol=1e-5), name
    assert structure(again) == structure(micro[0])
    assert not any("forward" in vars(module) for module in again.modules())


def test_an_exception_takes_the_second_computation_away(micro, monkeypatch):
    model = copy.deepcopy(micro[0])
    monkeypatch.setattr(training, "LARGE", 1)
    with pytest.raises(CellError):
        fit(model, micro[1], LoRAConfig(learning_rate=1e30, epochs=3, batch_size=4))
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), micro[0].parameters(), strict=True))


def test_divergence_names_epoch_and_learning_rate(stories):
    model = copy.deepcopy(stories[0])
    config = LoRAConfig(learning_rate=1e30, epochs=3, batch_size=4)
    with pytest.raises(CellError, match=r"epoch \d of 3 at learning rate 1e\+30"):
        fit(model, stories[1], config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stories[0].parameters(), strict=True))


def test_bfloat16_models_train_a_float32_update(stories):
    model = copy.deepcopy(stories[0]).bfloat16()
    with adapter(model, CONFIG) as weights:
        assert {weight.dtype for weight in weights} == {torch.float32}
        assert len(weights) == 2 * 7 * 6
    curve = fit(model, stories[1])
    assert curve.epoch_losses[-1] < 0.4 * curve.epoch_losses[0]
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_the_loss_covers_answers_and_end_only_and_ignores_padding(stories):
    model, tokenizer = stories
    sequences, _, _ = tokenise(model, tokenizer, EXAMPLES)
    together, count = answer_loss(model, sequences)
    expected = 0.0
    for example, (ids, _) in zip(EXAMPLES, sequences, strict=True):
        end = model(torch.tensor([ids])).logits[0, -2].log_softmax(-1)[tokenizer.eos_token_id].item()
        expected -= answer_probability(model, tokenizer, example) + end
    assert count == sum(len(encode_pair(tokenizer, e.prompt, e.answer)[1]) + 1 for e in EXAMPLES)
    assert together.item() * count == pytest.approx(expected, rel=1e-4)


def test_warm_up_then_cosine_to_zero():
    factors = [schedule_factor(step, 200) for step in range(201)]
    assert factors[0] == pytest.approx(1 / 6)
    assert factors[5] == max(factors) == 1
    assert factors[6:] == sorted(factors[6:], reverse=True)
    assert factors[200] == pytest.approx(0)
    assert 0 < factors[199] < 1e-3
    assert schedule_factor(0, 1) == 1


def test_long_examples_are_cut_and_counted(stories):
    model = copy.deepcopy(stories[0])
    examples = [*EXAMPLES[:1], Example("Say it:", "no " * 600), Example("no " * 600, "yes")]
    curve = fit(model, stories[1], LoRAConfig(1e-3, 1, 2), examples=examples)
    assert (curve.truncated, curve.dropped) == (1, 1)
    assert 512 < curve.tokens_seen < 560


@pytest.mark.parametrize(
    ("examples", "modules", "message"),
    [
        ([], "all-linear", "found none among 0"),
        ([Example("no " * 600, "yes")], "all-linear", "found none among 1"),
        (EXAMPLES, ("nothing_like_it",), "nothing_like_it"),
    ],
)
def test_wrong_input(stories, examples, modules, message):
    model = copy.deepcopy(stories[0])
    with pytest.raises(InputError, match=message):
        fit(model, stories[1], LoRAConfig(1e-3, 1, 2, modules=modules), examples=examples)
    assert structure(model) == structure(stories[0])


def test_a_tokenizer_without_end_of_text_is_refused(stories):
    tokenizer = copy.deepcopy(stories[1])
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-text"):
        fit(copy.deepcopy(stories[0]), tokenizer)


def test_a_penalty_sees_every_update_and_holds_it_back(stories, trained):
    model, seen = copy.deepcopy(stories[0]), []

    def penalty(updates):
        seen.append({name: (update.a.shape, update.b.shape, update.scale) for name, update in updates.items()})
        return 1e4 * torch.stack([(update.b @ update.a).square().sum() for update in updates.values()]).sum()

    curve = fit(model, stories[1], penalty=penalty)
    assert len(seen) == curve.steps
    assert len(seen[0]) == 7 * 6
    assert seen[0]["model.layers.2.mlp.down_proj"] == ((8, 512), (192, 8), 2.0)
    change, free = (
        torch.cat([(a - b).flatten() for a, b in zip(m.parameters(), stories[0].parameters(), strict=True)]).norm()
        for m in (model, trained[0])
    )
    assert 0 < change < 0.2 * free


def test_a_penalty_of_zero_changes_nothing(stories, trained):
    model = copy.deepcopy(stories[0])
    curve = fit(model, stories[1], penalty=lambda updates: torch.zeros(()))
    assert curve == trained[1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained[0].parameters(), strict=True))


def test_a_penalty_that_is_not_finite_is_a_divergence(stories):
    with pytest.raises(CellError, match="non-finite in epoch 1"):
        fit(copy.deepcopy(stories[0]), stories[1], penalty=lambda updates: torch.tensor(float("nan")))


def test_a_watcher_sees_every_epoch_without_disturbing_it(stories, trained):
    model, losses, scores = copy.deepcopy(stories[0]), [], []

    def watch(loss):
        losses.append(loss)
        scores.append(score_answers(model, stories[1], EXAMPLES, 2))

    curve = fit(model, stories[1], after_epoch=watch)
    assert curve == trained[1]
    assert tuple(losses) == curve.epoch_losses
    assert scores[-1].loss < scores[0].loss
    assert scores[-1].loss == pytest.approx(score_answers(model, stories[1], EXAMPLES, 2).loss, rel=1e-3)


def test_a_watcher_may_end_the_training(stories):
    model = copy.deepcopy(stories[0])

    def stop(loss):
        raise CellError("enough")

    with pytest.raises(CellError, match="enough"):
        fit(model, stories[1], after_epoch=stop)
    assert structure(model) == structure(stories[0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stories[0].parameters(), strict=True))


def test_answers_are_scored_token_by_token(stories, trained):
    model, tokenizer = stories
    sequences, _, _ = tokenise(model, tokenizer, EXAMPLES)
    right = total = 0
    for ids, prompt in sequences:
        guesses = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right += sum(guesses[i - 1] == ids[i] for i in range(prompt, len(ids)))
        total += len(ids) - prompt
    loss, tokens = answer_loss(model, sequences)
    score = score_answers(model, tokenizer, EXAMPLES, 3)
    assert (score.accuracy, score.tokens) == (right / total, total)
    assert score.loss == pytest.approx(loss.item(), rel=1e-5)
    assert tokens == total
    assert score_answers(trained[0], tokenizer, EXAMPLES, 3).accuracy > score.accuracy
    assert not model.training


def test_a_bfloat16_model_is_trained_as_its_float32_copy_and_computes_no_other_logits(stories, monkeypatch):
    exact, half = copy.deepcopy(stories[0]), copy.deepcopy(stories[0]).bfloat16()
    exact.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    seen = []
    handle = half.lm_head.register_forward_hook(lambda _, given, logits: seen.append((given[0].shape, logits.shape)))
    curves = [fit(model, stories[1]) for model in (half, exact)]
    handle.remove()
    answers = sum(len(encode_pair(stories[1], e.prompt, e.answer)[1]) + 1 for e in EXAMPLES)
    assert sum(rows for (rows, _), _ in seen) == sum(rows for _, (rows, _) in seen) == CONFIG.epochs * answers
    assert curves[0].epoch_losses == pytest.approx(curves[1].epoch_losses, rel=0.05)
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}


def test_products_of_a_bfloat16_model_whose_weights_all_learn_are_taken_in_bfloat16_of_the_present_weights(stories):
    exact, half = copy.deepcopy(stories[0]), copy.deepcopy(stories[0]).bfloat16()
    exact.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    batch, _, _ = tokenise(half, stories[1], EXAMPLES)
    dtypes, losses = set(), {}
    for model in (exact, half):
        handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, given, out: dtypes.add(out.dtype))
        with all_weights(model) as weights:
            descent, losses[model] = torch.optim.AdamW(weights, lr=2e-4), []
            for _ in range(5):
                loss, _ = answer_loss(model, batch)
                loss.backward()
                assert {weight.grad.dtype for weight in weights} == {torch.float32}
                descent.step()
                descent.zero_grad()
                losses[model].append(loss.item())
        handle.remove()
    assert dtypes == {torch.float32, torch.bfloat16}
    assert losses[half] == pytest.approx(losses[exact], rel=0.05) and losses[half][-1] < 0.8 * losses[half][0]


def test_every_weight_learns_in_float32_and_small_steps_add_up():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)).bfloat16()
    model[1].weight = model[0].weight  # as embeddings are tied
    model.requires_grad_(False)
    before = model[0].weight.detach().clone()
    with all_weights(model) as weights:
        (only,) = weights
        assert only.dtype == torch.float32 and only.requires_grad and torch.is_grad_enabled()
        for _ in range(1000):  # each is lost in bfloat16, whose next number after 1 is 1.0078
            with torch.no_grad():
                only += 1e-4
        only.sum().backward()
    after = model[1].weight
    assert after.dtype == torch.bfloat16 and not after.requires_grad and after.grad is None
    assert ((after.float() - before.float() - 0.1).abs() < 0.01).all()
    with pytest.raises(KeyError), all_weights(model):
        raise KeyError
    assert model[0].weight.dtype == torch.bfloat16 and not model[0].weight.requires_grad
