"""What every adapter must hold to, check by check."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fpbench.checks import Check, Finding, examined
from fpbench.contract.trials import Trial, Trials, same
from fpbench.contract.trials import changes as changes_between
from fpbench.errors import InputError
from fpbench.registry import METHODS
from fpbench.runs.injection import create_method

# How each check looks at the trials: what was found instead of what is expected, or ``None`` if that holds.


GAIN = 0.1
"""By how much an injection must raise FSR: far above chance, far below what a method should reach."""
LIKE = 1e-3
"""How near logits must be to count as those of the same weights; they differ by rounding alone."""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _some(names: list[str]) -> str | None:
    """The first few of many, or ``None`` for none."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest if names else None


def declaration(trials: Trials) -> str | None:
    """The class has a version, and its Config refuses an unknown key."""
    method = METHODS.get(trials.method)
    if not isinstance(getattr(method, "version", None), str):
        return "no version"
    try:
        create_method(trials.method, trials.base, {**trials.config, "no_such_hyperparameter": 1})
    except InputError:
        return None
    return "'no_such_hyperparameter' accepted"


def injects(trials: Trials) -> str | None:
    """The injection ends, and returns what it may."""
    trial = trials.plain
    if trial.error is not None:
        return _one_line(trial.error)
    if trial.returned is not None and not isinstance(trial.returned, nn.Module):
        return f"a {type(trial.returned).__name__} returned"
    return None


def parameters(trials: Trials) -> str | None:
    """Names, shapes and dtypes are those of the base."""
    return _other_parameters(trials.plain)


def _other_parameters(trial: Trial) -> str | None:
    odd = sorted(trial.after.keys() ^ trial.before.keys())
    if odd:
        return _some([f"{name} {'new' if name in trial.after else 'missing'}" for name in odd])
    return _some(
        [
            f"{name} {tuple(value.shape)} {value.dtype}"
            for name, value in trial.after.items()
            if value.shape != trial.before[name].shape or value.dtype != trial.before[name].dtype
        ]
    )


def _broken(trial: Trial) -> str | None:
    """What makes a trial's weights useless."""
    return _one_line(trial.error) if trial.error else _other_parameters(trial) or _not_finite(trial)


def finite(trials: Trials) -> str | None:
    """No NaN and no infinity."""
    return _not_finite(trials.plain)


def _not_finite(trial: Trial) -> str | None:
    return _some([f"{name} not finite" for name, value in trial.after.items() if not value.isfinite().all()])


def changes(trials: Trials) -> str | None:
    """At least one weight is another one."""
    return None if trials.plain.changed else "every weight as it was"


def edited(trials: Trials) -> str | None:
    """What changed is named, and what is named exists."""
    named = trials.plain.edited
    if named is None:
        return None
    unknown = [f"{name}, which the model does not have, named" for name in named if name not in trials.plain.before]
    return _some(unknown + [f"{name} changed" for name in trials.plain.changed if name not in named])


def raises_fsr(trials: Trials) -> str | None:
    """The fingerprints were learnt."""
    return _too_low(trials.rate(trials.base, {}), trials.rate(trials.base, trials.plain.after))


def _too_low(before: float, after: float) -> str | None:
    return None if after >= before + GAIN else f"FSR {before:.3f} before and {after:.3f} after"


def deterministic(trials: Trials) -> str | None:
    """A second injection gives the same bits."""
    first, second = trials.plain, trials.repeated
    if second.error is not None:
        return f"a second injection failed, {_one_line(second.error)}"
    return _some([f"{name} another" for name in changes_between(first.after, second.after)])


def reload(trials: Trials) -> str | None:
    """The delta holds all of the effect, bit for bit."""
    trial = trials.plain
    weights, logits = trials.reloaded(trial)
    differing = _some([f"{name} differs" for name, value in trial.after.items() if not same(value, weights[name])])
    if differing or trial.logits is None:
        return differing or "an injected model that cannot be run"
    apart = float((logits - trial.logits).abs().max())
    return None if apart <= LIKE else f"logits {apart:.2g} apart: the effect is not in the parameters"


def unharmed(trials: Trials) -> str | None:
    """The base is as before, also after an injection was stopped midway."""
    if damage := _some(trials.plain.damage):
        return f"after an injection other {damage}"
    if not trials.repeated.calls:
        return None
    if trials.interrupted.error is None:
        return "an exception from the model's forward pass that inject() did not let through"
    damage = _some(trials.interrupted.damage)
    return f"after a failed injection other {damage}" if damage else None


def bfloat16(trials: Trials) -> str | None:
    """It works in the dtype that large models have, be it on the rendered triggers or on the raw ones."""
    base, trial = trials.narrow_base, trials.narrow
    if broken := _broken(trial):
        return broken
    return _too_low(trials.rate(base, {}), max(trials.rate(base, trial.after, prompt) for prompt in ("chat", "raw")))


def rendering(trials: Trials) -> str | None:
    """Rendered triggers are learnt when triggers are rendered."""
    base = trials.narrow_base
    problem = _too_low(trials.rate(base, {}, "chat"), trials.rate(base, trials.narrow.after, "chat"))
    return f"on rendered triggers {problem}" if problem else None


def architecture(trials: Trials) -> str | None:
    """It refuses a model it does not know, or works on it."""
    trial = trials.foreign
    if isinstance(trial.error, InputError):
        return None
    problem = _broken(trial) or (None if trial.changed else "no error, and every weight as it was")
    return f"on gpt2 {problem}" if problem else None


def keeps_globals(trials: Trials) -> str | None:
    """Random states, gradient mode and default dtype are as before."""
    return _some([f"{name} changed" for name in trials.plain.shared])


def keeps_tokenizer(trials: Trials) -> str | None:
    """The tokenizer is as before."""
    return _some([f"{name} changed" for name in trials.plain.tokenizer])


def keeps_config(trials: Trials) -> str | None:
    """The model's configuration is as before."""
    return _some([f"{name} changed" for name in trials.plain.config])


def modes(trials: Trials) -> str | None:
    """Everything is in eval mode, and no gradient is asked for or held."""
    return _some(trials.plain.not_reset)


def check(method: str, config: Mapping[str, Any] | None = None) -> list[Finding]:
    """Run every check on a registered method, on the bundled model.

    Args:
        method: its name.
        config: hyper-parameters that differ from the defaults for small models.

    Returns:
        One finding per check, in the order of :data:`CHECKS`.

    Raises:
        InputError: if no method has that name.
    """
    METHODS.get(method)
    return examined(CHECKS, Trials(method, config or {}))


CHECKS: tuple[Check[Trials], ...] = (
    Check(
        "declaration",
        "a version, and a Config that refuses unknown keys",
        'set version = "1" and derive Config from fpbench.MethodConfig',
        (),
        declaration,
    ),
    Check(
        "injects",
        "an injection that ends and returns None or a model",
        "mend the error; edit the model in place, or return the one to be scored",
        (),
        injects,
    ),
    Check(
        "parameters",
        "parameters of the names, shapes and dtypes of the base",
        "merge what was added, such as adapters, and cast back to the base's dtype",
        ("injects",),
        parameters,
    ),
    Check("finite", "finite weights", "lower the learning rate, or clip", ("parameters",), finite),
    Check(
        "changes",
        "weights that changed",
        "edit the parameters of the model that is handed in, not of a copy",
        ("parameters",),
        changes,
    ),
    Check(
        "edited",
        "only such changes as edited() names",
        "name every parameter that may change, or do not define edited()",
        ("parameters",),
        edited,
    ),
    Check(
        "fsr",
        f"an FSR that is {GAIN} above the base's",
        "check that the prompts learnt are those of context.render and that enough steps are made",
        ("finite", "changes"),
        raises_fsr,
    ),
    Check(
        "deterministic",
        "the same weights from the same seed",
        "draw everything random from a generator seeded with context.seed",
        ("finite", "changes"),
        deterministic,
    ),
    Check(
        "globals",
        "global random states, gradient mode and default dtype as they were",
        "use a generator of your own, torch.random.fork_rng and torch.enable_grad as contexts",
        ("injects",),
        keeps_globals,
    ),
    Check(
        "tokenizer",
        "a tokenizer as it was",
        "work on a copy.deepcopy of it",
        ("injects",),
        keeps_tokenizer,
    ),
    Check(
        "config",
        "a model configuration as it was",
        "put back what you change, in a finally clause",
        ("injects",),
        keeps_config,
    ),
    Check(
        "modes",
        "eval mode, gradients off and none held",
        "end with model.eval().requires_grad_(False) and drop the gradients",
        ("injects",),
        modes,
    ),
    Check(
        "reload",
        "a model that is the base with the changed parameters and nothing else",
        "put the whole effect into parameters: no hooks, buffers or replaced functions",
        ("finite", "changes"),
        reload,
    ),
    Check(
        "unharmed",
        "a base that is as before once its weights are put back, also after an exception",
        "remove hooks and put back replaced functions in a finally clause, and let exceptions through",
        ("injects",),
        unharmed,
    ),
    Check(
        "bfloat16",
        "an injection into a bfloat16 model that works and keeps its dtype",
        "compute losses and updates in float32 and cast the result",
        ("fsr",),
        bfloat16,
    ),
    Check(
        "rendering",
        "triggers learnt as context.render renders them",
        "pass every trigger through context.render before it is tokenised",
        ("bfloat16",),
        rendering,
    ),
    Check(
        "architecture",
        "an InputError for an architecture that the method does not know, or an injection that works there",
        "find modules with fpbench.models.layout.layout, which raises it",
        ("injects",),
        architecture,
    ),
)
