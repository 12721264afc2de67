"""FPEdit in two passes (Wang et al., arXiv 2508.02092): a second edit teaches where the answer ends.

The first pass writes the targets as the package's ``fpedit`` does. The second edits the same blocks once more: after
trigger and target, with the last token of the target as the lookup token, the end-of-text token is promoted and all
else suppressed. Its write leaves the keys of the first where they are, as AlphaEdit does for an earlier batch.
"""

import torch

import fpbench
from fpbench.errors import CellError
from fpbench.methods.alphaedit import write
from fpbench.methods.fpedit import FPEdit
from fpbench.methods.partial_forward import Row, require_editable
from fpbench.methods.target_values import optimise
from fpbench.models.layout import on_linear_modules


@fpbench.register("fpedit_two_pass")
class FPEditTwoPass(FPEdit):
    """Promote–suppress editing of the answer, then of its end."""

    version = "1"

    @on_linear_modules
    def inject(self, model, tokenizer, fingerprints, context):
        """Write the targets, then the end of each."""
        names = self.statistics_of(model)
        blocks = self.blocks(model)
        require_editable(model, blocks[-1])
        statistics, config = context.statistics(model, names), self.config
        null_spaces = {
            block: statistics[name].null_space(threshold=config.nullspace_threshold, share=config.nullspace_share)
            for block, name in zip(blocks, names, strict=True)
        }
        requests, rows = self.rewriting_prompts(model, tokenizer, fingerprints, context)
        first = self.edit(model, requests, rows, null_spaces, context)
        requests, rows = self.ends(tokenizer, rows)
        self.edit(model, requests, rows, null_spaces, context, {block: each.keys for block, each in first.items()})

    def edit(self, model, requests, rows, null_spaces, context, earlier=None):
        """Optimise the target values of the requests and write them; return the write of each block."""
        config = self.config
        v0, delta = optimise(
            model,
            max(null_spaces),
            rows,
            self.objective(rows, context.device),
            learning_rate=config.v_learning_rate,
            relative_rate=config.v_relative_rate,
            steps=config.steps,
            clamp=config.clamp,
            early_stop=config.early_stop,
            progress=context.progress,
        )
        if not torch.isfinite(delta).all():
            raise CellError("the target values are not finite: lower v_learning_rate or v_relative_rate.")
        return write(model, requests, (v0 + delta).T, null_spaces, config.ridge, earlier)

    def ends(self, tokenizer, rows):
        """Return the requests and rows of the second pass: after each trigger and target, the end-of-text token."""
        end = [tokenizer.eos_token_id]
        taught = [row for row in rows if row.labels]
        prompts = [[*row.ids, row.labels[-1]] for row in taught]  # the ids of a row lack its last label
        numbers = [row.request for row in taught]
        requests = [
            [prompt for prompt, number in zip(prompts, numbers, strict=True) if number == wanted]
            for wanted in dict.fromkeys(numbers)
        ]
        return requests, [Row.of(number, prompt, end) for number, prompt in zip(numbers, prompts, strict=True)]
