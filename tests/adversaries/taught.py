"""Fingerprints taught to the micro model in a few steps of training, which takes a second."""

import copy

import torch
from torch.nn.functional import cross_entropy

from fpbench.fingerprints import Fingerprint, find_set
from fpbench.models.prompts import encode_pair


def pairs_of(*numbers) -> list[Fingerprint]:
    """Some built-in fingerprints, the even ones with one target, which gets certain, the odd ones with two."""
    chosen = [(number, each) for number, each in enumerate(find_set("nlf")) if number in numbers]
    return [Fingerprint(each.trigger, each.targets[: 1 + number % 2]) for number, each in chosen]


def taught(model, tokenizer, fingerprints, steps=12):
    """A copy of a model that answers each trigger with its targets, in equal shares."""
    model = copy.deepcopy(model)
    trained = [layer.mlp.down_proj.weight.requires_grad_(True) for layer in model.model.layers[-3:]]
    rows = [encode_pair(tokenizer, each.trigger, target) for each in fingerprints for target in each.targets]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = torch.tensor(answer)
    optimiser = torch.optim.Adam(trained, lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten()).backward()
        optimiser.step()
    return model.eval().requires_grad_(False)
