"""RLEdit (arXiv 2502.05759): a hypernetwork, trained on a trajectory of edits, shifts FFN weights step by step."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext, MethodConfig
from fpbench.methods.hypernetwork import Policy
from fpbench.methods.partial_forward import Row
from fpbench.methods.target_values import Labels
from fpbench.methods.trajectory import Batch, Lesson, MetaTraining, Step, edit, meta_train
from fpbench.models.layout import layout
from fpbench.models.prompts import encode_pair
from fpbench.registry import register


class Depth(BaseModel):
    """The blocks ℓ of L with low ≤ ℓ/L < high."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(ge=0)
    high: float = Field(le=1)


Blocks = tuple[int, ...] | Depth


@register("rledit")
class RLEdit(FingerprintMethod):
    """Every fingerprint is both edit and equivalent tuple, unrelated pairs are the locality (docs/methods.md §2.4)."""

    version = "1"

    class Config(MethodConfig):
        """Hyper-parameters of the hypernetwork and its trajectory.

        Attributes:
            gate_proj, up_proj, down_proj: blocks whose projection of that name is edited, as numbers or as a depth.
            rank: of the residual blocks.
            hypernetwork_blocks: how many there are.
            rate: η_e at the start.
            steps: T, how often the set is edited in one trajectory (``num_seq``).
            meta_learning_rate: Adam's, for the hypernetwork.
            epochs: meta-training trajectories, each with one Adam step.
            decay: γ of the memory back-tracking.
            depth: how many steps back it reaches.
            locality_weight: of the divergence on unrelated pairs.
            unrelated: unrelated pairs per fingerprint.
            regularisation: η_reg of ‖ΔW‖².
            clip: largest norm of the hypernetwork's gradient.
            mode: ``"faithful"`` to the reference code, or ``"repaired"`` where that departs from the paper; see
                :class:`~fpbench.methods.trajectory.MetaTraining`.
        """

        gate_proj: Blocks = ()
        up_proj: Blocks = ()
        down_proj: Blocks = ()
        rank: int = Field(ge=1)
        hypernetwork_blocks: int = Field(ge=0)
        rate: float = Field(gt=0)
        steps: int = Field(ge=1)
        meta_learning_rate: float = Field(ge=0)
        epochs: int = Field(ge=0)
        decay: float = Field(ge=0, le=1)
        depth: int = Field(ge=1)
        locality_weight: float = Field(ge=0)
        unrelated: int = Field(ge=1)
        regularisation: float = Field(ge=0)
        clip: float = Field(gt=0)
        mode: Literal["faithful", "repaired"]

    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        """Train the hypernetwork on the trajectory, then walk it again from the base with the trained one.

        Raises:
            CellError: if a shift is not finite.
        """
        config = self.config
        start = perf_counter()
        shapes = {name: tuple(model.get_submodule(name).get_parameter("weight").shape) for name in self.modules(model)}
        policy = Policy(
            shapes, config.rank, config.hypernetwork_blocks, config.rate, context.seed, next(model.parameters()).device
        )
        steps = [self.step(model, tokenizer, fingerprints, context)] * config.steps
        training = MetaTraining(
            config.meta_learning_rate,
            config.epochs,
            config.decay,
            config.depth,
            config.locality_weight,
            config.regularisation,
            config.clip,
            repaired=config.mode == "repaired",
        )
        for _ in meta_train(model, policy, steps, training, context.progress):
            pass
        trained = perf_counter()
        edit(model, policy, steps, context.progress)
        context.seconds["optimisation"] = trained - start
        context.seconds["write"] = perf_counter() - trained

    def step(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> Step:
        """The whole set at once; a fingerprint has no paraphrase but itself."""
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
        lesson = Lesson(Batch.of(rows, device), self.loss(rows, device))
        return Step([lesson], [lesson], [Batch.of(unrelated, device)])

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """The primary one."""
        return [fingerprint.primary]

    def loss(self, rows: Sequence[Row], device: Any) -> Callable[[Tensor], Tensor]:
        """Mean negative log-likelihood of an answer token, as a function of the logits [S, V]."""
        tokens = Labels.of(rows, device).token
        return lambda logits: cross_entropy(logits, tokens)

    def modules(self, model: nn.Module) -> list[str]:
        """Names of the edited linear modules.

        Raises:
            InputError: if there is none, or the model has no such block.
        """
        parts = layout(model)
        count = len(parts.blocks)
        names = []
        for projection in ("gate_proj", "up_proj", "down_proj"):
            chosen = getattr(self.config, projection)
            if isinstance(chosen, Depth):
                chosen = [block for block in range(count) if chosen.low <= block / count < chosen.high]
            if not all(0 <= block < count for block in chosen):
                raise InputError(
                    f"edited blocks must lie in 0 … {count - 1}, found {list(chosen)}: set {projection!r}."
                )
            names += [parts.projection_name(projection, block) for block in chosen]
        if not names:
            raise InputError("no module is edited: set 'gate_proj', 'up_proj' or 'down_proj' to some blocks.")
        return names

    def edited(self, model: nn.Module) -> list[str]:
        """The weights of the chosen projections."""
        return [f"{name}.weight" for name in self.modules(model)]
