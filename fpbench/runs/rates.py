"""Which learning rate a search takes: decisions on figures alone (protocol §4; docs/methods.md §2.1, §3.1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FINE_TUNING_RATES = tuple(step / 10_000 for step in range(1, 11))
INJECTION_RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)


@dataclass(frozen=True)
class FineTuningTrial:
    """One fine-tuning of the unfingerprinted base.

    Attributes:
        learning_rate: the peak rate.
        epoch_losses: mean loss of every finished epoch (nats a token).
        held_out_losses: loss on the held-out rows after each of them.
        verdict: why it counts as unstable; ``None`` if it is stable.
    """

    learning_rate: float
    epoch_losses: tuple[float, ...]
    held_out_losses: tuple[float, ...]
    verdict: str | None


def instability(epoch_losses: Sequence[float], held_out_losses: Sequence[float]) -> str | None:
    """Why a training counts as unstable after its latest epoch; ``None`` while it is stable (protocol §4)."""
    epoch, loss, held_out = len(epoch_losses), epoch_losses[-1], held_out_losses[-1]
    if not (math.isfinite(loss) and math.isfinite(held_out)):
        return f"the loss after epoch {epoch} is not finite"
    if epoch > 1 and loss > epoch_losses[-2]:
        return f"the mean loss rose from {epoch_losses[-2]:.4f} to {loss:.4f} in epoch {epoch}"
    if held_out > held_out_losses[0]:
        return f"the held-out loss rose from {held_out_losses[0]:.4f} in epoch 1 to {held_out:.4f} in epoch {epoch}"
    return None


def climb(attempt: Callable[[float], FineTuningTrial]) -> list[FineTuningTrial]:
    """Try rate after rate, from the smallest, up to and including the first unstable one."""
    trials = []
    for rate in FINE_TUNING_RATES:
        trials.append(attempt(rate))
        if trials[-1].verdict is not None:
            break
    return trials


def largest_stable(trials: Sequence[FineTuningTrial]) -> float | None:
    """The largest rate below the first unstable one; ``None`` if the smallest is unstable already."""
    return max((trial.learning_rate for trial in trials if trial.verdict is None), default=None)


@dataclass(frozen=True)
class InjectionTrial:
    """One injection of a development set into the base.

    Attributes:
        learning_rate: the peak rate.
        fsr: exact FSR of the development set.
        accuracy_drop: by how much the token accuracy on held-out rows fell.
        verdict: why the injection failed; ``None`` if it did not, and the figures stand.
    """

    learning_rate: float
    fsr: float = 0.0
    accuracy_drop: float = 0.0
    verdict: str | None = None

    @property
    def score(self) -> float:
        """FSR − drop, the criterion (docs/methods.md §2.1, eq. (2))."""
        return self.fsr - self.accuracy_drop


def best(trials: Sequence[InjectionTrial]) -> float | None:
    """The rate of the highest score, of equal ones the smallest; ``None`` if every injection failed."""
    done = [trial for trial in trials if trial.verdict is None]
    return max(done, key=lambda trial: (trial.score, -trial.learning_rate)).learning_rate if done else None
