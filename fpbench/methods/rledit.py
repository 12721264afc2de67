"""RLEdit (arXiv 2502.05759): a hypernetwork, trained on a trajectory of edits, shifts FFN weights step by step."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fpbench.checks import Settings
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.methods.hypernetwork import Policy
from fpbench.methods.partial_forward import Row, require_own_logits
from fpbench.methods.target_values import Labels
from fpbench.methods.trajectory import Batch, EditBatch, MetaTraining, Predictions, Step, edit, meta_train
from fpbench.models.costs import ADAM_BYTES, Counter, Phase, Room, Shape, Work
from fpbench.models.layout import layout, on_linear_modules
from fpbench.models.prompts import Example, encode_pair
from fpbench.registry import register


class Depth(Settings):
    """The blocks ℓ of L with low ≤ ℓ/L < high."""

    low: float = Field(ge=0)
    high: float = Field(le=1)


Blocks = tuple[int, ...] | Depth


@register("rledit")
class RLEdit(FingerprintMethod):
    """Fingerprints are both edits and equivalents, unrelated pairs the locality (docs/methods.md §2.4)."""

    version = "1"

    class Config(MetaTraining):
        """Hyper-parameters of the hypernetwork and of its trajectory, and those of its training.

        Attributes:
            gate_proj, up_proj, down_proj: blocks whose projection of that name is edited, as numbers or as a depth.
            rank: of the residual blocks.
            hypernetwork_blocks: how many there are.
            rate: η_e at the start.
            steps: T, how often the set is edited in one trajectory (``num_seq``).
            unrelated: unrelated pairs per fingerprint.
        """

        gate_proj: Blocks = ()
        up_proj: Blocks = ()
        down_proj: Blocks = ()
        rank: int = Field(ge=1)
        hypernetwork_blocks: int = Field(ge=0)
        rate: float = Field(gt=0)
        steps: int = Field(ge=1)
        unrelated: int = Field(ge=1)

    @on_linear_modules
    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        """Train the hypernetwork on the trajectory, then edit the base with it (docs/methods.md §2.4, steps 1 to 8).

        Raises:
            InputError: for an architecture that cannot be edited, or a block that does not exist.
            CellError: if a shift is not finite.
        """
        config, device = self.config, next(model.parameters()).device
        start = perf_counter()
        shapes = {name: tuple(model.get_submodule(name).get_parameter("weight").shape) for name in self.modules(model)}
        row = Row.of(0, [1, 2, 3], [4])
        require_own_logits(model, row, Predictions(model, shapes).logits(Batch.of([row], device)))
        policy = Policy(shapes, config.rank, config.hypernetwork_blocks, config.rate, context.seed, device)
        steps = [self.step(model, tokenizer, fingerprints, context)] * config.steps
        for _ in meta_train(model, policy, steps, config, context.progress):
            pass
        trained = perf_counter()
        edit(model, policy, steps, context.progress)
        context.seconds["optimisation"] = trained - start
        context.seconds["write"] = perf_counter() - trained

    def step(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> Step:
        """Return one step of the trajectory: the whole set; a fingerprint has no paraphrase but itself."""
        device = next(model.parameters()).device
        rows = [
            Row.of(number, *encode_pair(tokenizer, context.render(fingerprint.trigger), target))
            for number, fingerprint in enumerate(fingerprints)
            for target in self.targets(fingerprint)
        ]
        pairs = context.regularisation(self.config.unrelated * len(fingerprints))
        unrelated = [
            Row.of(number, *encode_pair(tokenizer, pair.prompt, pair.answer)) for number, pair in enumerate(pairs)
        ]
        edits = EditBatch(Batch.of(rows, device), self.loss(rows, device))
        return Step([edits], [edits], [Batch.of(unrelated, device)])

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """Return the targets that are taught: the primary one."""
        return [fingerprint.primary]

    def loss(self, rows: Sequence[Row], device: Any) -> Callable[[Tensor], Tensor]:
        """Return the mean negative log-likelihood of an answer token, as a function of the logits [S, V] (step 1)."""
        tokens = Labels.of(rows, device).token
        return lambda logits: cross_entropy(logits, tokens)

    def modules(self, model: nn.Module) -> list[str]:
        """Return the names of the edited linear modules, each once: gate and up may be one, and a gate may lack.

        Raises:
            InputError: if there is none, or the model has no such block.
        """
        parts = layout(model)
        count = len(parts.blocks)
        names = []
        for projection in ("gate_proj", "up_proj", "down_proj"):
            chosen = getattr(self.config, projection)
            if isinstance(chosen, Depth):
                chosen = parts.between(chosen.low, chosen.high)
            if not all(0 <= block < count for block in chosen):
                raise InputError(
                    f"edited blocks must lie in 0 … {count - 1}, found {list(chosen)}: set {projection!r}."
                )
            found = [parts.projection_name(projection, block) for block in chosen]
            names += [name for name in found if name is not None and name not in names]
        if not names:
            raise InputError("no module is edited: set 'gate_proj', 'up_proj' or 'down_proj' to some blocks.")
        return names

    def edited(self, model: nn.Module) -> list[str]:
        """Return the weights of the chosen projections."""
        return [f"{name}.weight" for name in self.modules(model)]

    def work(self, counter: Counter, fingerprints: FingerprintSet, pairs: Sequence[Example]) -> Work:
        """Count a step, which learns from the set and from unrelated pairs, and the final editing."""
        some = pairs[: self.config.unrelated * len(fingerprints)]
        unrelated = counter.tokens([f"{each.prompt} {each.answer}" for each in some])
        answers = counter.tokens([target for each in fingerprints for target in self.targets(each)])
        nodes = len(fingerprints) * counter.length([each.trigger for each in fingerprints]) + answers
        step = Work(steps=2, trained=nodes + unrelated)
        again = Work(steps=1, trained=nodes)
        total = step * float(self.config.epochs) + again
        return total * float(self.config.steps)

    def memory(self, shape: Shape) -> Phase:
        """Count the networks with their optimiser and the edited weights in float32; in main memory the delta."""
        named, edited = dict(shape.model.named_parameters()), self.edited(shape.model)
        shapes = {tuple(named[name].shape) for name in edited}
        width = sum(map(sum, shapes))
        policy = ADAM_BYTES * 2 * width * self.config.rank * self.config.hypernetwork_blocks
        changed = shape.size(edited)
        # The sum of shifts and its gradient in float32, the original, and one shift in float64.
        states = changed / shape.bytes * (8 + shape.bytes) + 8 * max(out * into for out, into in shapes)
        return Phase(self.name, Room(policy + states), Room(3 * changed))
