"""The adapter contract, check by check: what every method must hold to, and how it is looked for in the trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fpbench.checks import Checklist, Finding
from fpbench.contract.trials import Trial, Trials, differences, same
from fpbench.errors import InputError
from fpbench.registry import METHODS
from fpbench.runs.injection import create_method

GAIN = 0.1  # by which an injection must raise FSR: far above chance, far below what a method should reach
LIKE = 1e-3  # how near logits must be to count as those of the same weights; they differ by rounding alone
CHECKS: Checklist[Trials] = Checklist()


def check(method: str, config: Mapping[str, Any] | None = None) -> list[Finding]:
    """Run every check on a registered method and the bundled model; return a finding each, in :data:`CHECKS` order.

    ``config`` holds hyper-parameters that differ from the defaults for small models.

    Raises:
        InputError: if no method has that name.
    """
    METHODS.get(method)
    return CHECKS.examine(Trials(method, config or {}))


@CHECKS.add(
    "declaration",
    "a version, and a Config that refuses unknown keys",
    'set version = "1" and derive Config from fpbench.MethodConfig',
)
def _declaration(trials: Trials) -> str | None:
    if not isinstance(getattr(METHODS.get(trials.method), "version", None), str):
        return "no version"
    try:
        create_method(trials.method, trials.base, {**trials.config, "no_such_hyperparameter": 1})
    except InputError:
        return None
    return "'no_such_hyperparameter' accepted"


@CHECKS.add(
    "injects",
    "an injection that ends and returns None or a model",
    "mend the error; edit the model in place, or return the one to be scored",
)
def _injects(trials: Trials) -> str | None:
    trial = trials.plain
    if trial.error is not None:
        return _one_line(trial.error)
    fits = trial.returned is None or isinstance(trial.returned, nn.Module)
    return None if fits else f"a {type(trial.returned).__name__} returned"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@CHECKS.add(
    "parameters",
    "parameters of the names, shapes and dtypes of the base",
    "merge what was added, such as adapters, and cast back to the base's dtype",
    needs=["injects"],
)
def _parameters(trials: Trials) -> str | None:
    return _other_parameters(trials.plain)


def _other_parameters(trial: Trial) -> str | None:
    if odd := sorted(trial.after.keys() ^ trial.before.keys()):
        return _some([f"{name} {'new' if name in trial.after else 'missing'}" for name in odd])
    now = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in trial.after.items()}
    then = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in trial.before.items()}
    return _some([f"{name} {found}" for name, found in now.items() if found != then[name]])


def _some(phrases: Sequence[str]) -> str | None:
    """Join the first three of many phrases; ``None`` for none."""
    rest = f" and {len(phrases) - 3} more" if len(phrases) > 3 else ""
    return ", ".join(phrases[:3]) + rest if phrases else None


@CHECKS.add("finite", "finite weights", "lower the learning rate, or clip", needs=["parameters"])
def _finite(trials: Trials) -> str | None:
    return _not_finite(trials.plain)


def _not_finite(trial: Trial) -> str | None:
    return _some([f"{name} not finite" for name, value in trial.after.items() if not value.isfinite().all()])


@CHECKS.add(
    "changes",
    "weights that changed",
    "edit the parameters of the model that is handed in, not of a copy",
    needs=["parameters"],
)
def _changes(trials: Trials) -> str | None:
    return None if trials.plain.changed else "every weight as it was"


@CHECKS.add(
    "edited",
    "only such changes as edited() names",
    "name every parameter that may change, or do not define edited()",
    needs=["parameters"],
)
def _edited(trials: Trials) -> str | None:
    if (named := trials.plain.edited) is None:
        return None
    unknown = [f"{name}, which the model does not have, named" for name in named if name not in trials.plain.before]
    return _some(unknown + [f"{name} changed" for name in trials.plain.changed if name not in named])


@CHECKS.add(
    "fsr",
    f"an FSR that is {GAIN} above the base's",
    "check that the prompts learnt are those of context.render and that enough steps are made",
    needs=["finite", "changes"],
)
def _fsr(trials: Trials) -> str | None:
    return _too_low(trials.rate(trials.base, {}), trials.rate(trials.base, trials.plain.after))


def _too_low(before: float, after: float) -> str | None:
    return None if after >= before + GAIN else f"FSR {before:.3f} before and {after:.3f} after"


@CHECKS.add(
    "deterministic",
    "the same weights from the same seed",
    "draw everything random from a generator seeded with context.seed",
    needs=["finite", "changes"],
)
def _deterministic(trials: Trials) -> str | None:
    first, second = trials.plain, trials.repeated
    if second.error is not None:
        return f"a second injection failed, {_one_line(second.error)}"
    return _some([f"{name} another" for name in differences(first.after, second.after)])


@CHECKS.add(
    "globals",
    "global random states, gradient mode and default dtype as they were",
    "use a generator of your own, torch.random.fork_rng and torch.enable_grad as contexts",
    needs=["injects"],
)
def _globals(trials: Trials) -> str | None:
    return _some([f"{name} changed" for name in trials.plain.process])


@CHECKS.add("tokenizer", "a tokenizer as it was", "work on a copy.deepcopy of it", needs=["injects"])
def _tokenizer(trials: Trials) -> str | None:
    return _some([f"{name} changed" for name in trials.plain.tokenizer])


@CHECKS.add(
    "config", "a model configuration as it was", "put back what you change, in a finally clause", needs=["injects"]
)
def _config(trials: Trials) -> str | None:
    return _some([f"{name} changed" for name in trials.plain.config])


@CHECKS.add(
    "modes",
    "eval mode, gradients off and none held",
    "end with model.eval().requires_grad_(False) and drop the gradients",
    needs=["injects"],
)
def _modes(trials: Trials) -> str | None:
    return _some(trials.plain.not_reset)


@CHECKS.add(
    "reload",
    "a model that is the base with the changed parameters and nothing else",
    "put the whole effect into parameters: no hooks, buffers or replaced functions",
    needs=["finite", "changes"],
)
def _reload(trials: Trials) -> str | None:
    trial = trials.plain
    weights, logits = trials.reloaded(trial)
    differing = _some([f"{name} differs" for name, value in trial.after.items() if not same(value, weights[name])])
    if differing or trial.logits is None:
        return differing or "an injected model that cannot be run"
    apart = float((logits - trial.logits).abs().max())
    return None if apart <= LIKE else f"logits {apart:.2g} apart: the effect is not in the parameters"


@CHECKS.add(
    "unharmed",
    "a base that is as before once its weights are put back, also after an exception",
    "remove hooks and put back replaced functions in a finally clause, and let exceptions through",
    needs=["injects"],
)
def _unharmed(trials: Trials) -> str | None:
    if damage := _some(trials.plain.damage):
        return f"after an injection other {damage}"
    if not trials.repeated.calls:
        return None
    if trials.interrupted.error is None:
        return "an exception from the model's forward pass that inject() did not let through"
    damage = _some(trials.interrupted.damage)
    return f"after a failed injection other {damage}" if damage else None


@CHECKS.add(
    "bfloat16",
    "an injection into a bfloat16 model that works and keeps its dtype",
    "compute losses and updates in float32 and cast the result",
    needs=["fsr"],
)
def _bfloat16(trials: Trials) -> str | None:
    base, trial = trials.narrow_base, trials.narrow
    if broken := _broken(trial):
        return broken
    # On the rendered triggers or on the raw ones: whether it renders is the next check's.
    return _too_low(trials.rate(base, {}), max(trials.rate(base, trial.after, prompt) for prompt in ("chat", "raw")))


def _broken(trial: Trial) -> str | None:
    return _one_line(trial.error) if trial.error else _other_parameters(trial) or _not_finite(trial)


@CHECKS.add(
    "rendering",
    "triggers learnt as context.render renders them",
    "pass every trigger through context.render before it is tokenised",
    needs=["bfloat16"],
)
def _rendering(trials: Trials) -> str | None:
    base = trials.narrow_base
    problem = _too_low(trials.rate(base, {}, "chat"), trials.rate(base, trials.narrow.after, "chat"))
    return f"on rendered triggers {problem}" if problem else None


@CHECKS.add(
    "architecture",
    "an InputError for an architecture that the method does not know, or an injection that works there",
    "find modules with fpbench.models.layout.layout, which raises it",
    needs=["injects"],
)
def _architecture(trials: Trials) -> str | None:
    trial = trials.foreign
    if isinstance(trial.error, InputError):
        return None
    problem = _broken(trial) or (None if trial.changed else "no error, and every weight as it was")
    return f"on gpt2 {problem}" if problem else None
