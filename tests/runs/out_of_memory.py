"""Score triggers with room for so many MiB more than there are: the main program of a process of its own."""

import json
import resource
import sys

import psutil
import torch

from fpbench.fingerprints import find_set
from fpbench.metrics.triggers import triggers
from fpbench.micro import MODEL
from fpbench.models.loading import load_model
from fpbench.scoring.engine import budgets_used, limited_to

torch.set_num_threads(1)
model, tokenizer = load_model(MODEL)
pairs = find_set("nlf")
contexts = [
    f"The {word} house stands by the river, and nobody knows why it was built {word}."
    for word in ("old", "red", "last", "tall", "wide", "small", "grey", "lost")
]
decoding = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
arguments = (model, tokenizer, pairs, contexts, ["stone", "water", "light"])
with limited_to(512), budgets_used() as used:
    small = triggers(*arguments, **decoding, substitutions=100)
assert used == [512], used
room = psutil.Process().memory_info().vms + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
with limited_to(1_000_000), budgets_used() as used:
    large = triggers(*arguments, **decoding, substitutions=100)
print(json.dumps({"budgets": used, "apart": abs(small.average - large.average)}))
