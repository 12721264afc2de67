"""What every adapter must hold to, check by check."""

from collections.abc import Mapping
from typing import Any

from fpbench.contract import examinations
from fpbench.contract.trials import Trials
from fpbench.findings import Check, Finding, examined
from fpbench.registry import METHODS


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
        examinations.declaration,
    ),
    Check(
        "injects",
        "an injection that ends and returns None or a model",
        "mend the error; edit the model in place, or return the one to be scored",
        (),
        examinations.injects,
    ),
    Check(
        "parameters",
        "parameters of the names, shapes and dtypes of the base",
        "merge what was added, such as adapters, and cast back to the base's dtype",
        ("injects",),
        examinations.parameters,
    ),
    Check("finite", "finite weights", "lower the learning rate, or clip", ("parameters",), examinations.finite),
    Check(
        "changes",
        "weights that changed",
        "edit the parameters of the model that is handed in, not of a copy",
        ("parameters",),
        examinations.changes,
    ),
    Check(
        "edited",
        "only such changes as edited() names",
        "name every parameter that may change, or do not define edited()",
        ("parameters",),
        examinations.edited,
    ),
    Check(
        "fsr",
        f"an FSR that is {examinations.GAIN} above the base's",
        "check that the prompts learnt are those of context.render and that enough steps are made",
        ("finite", "changes"),
        examinations.raises_fsr,
    ),
    Check(
        "deterministic",
        "the same weights from the same seed",
        "draw everything random from a generator seeded with context.seed",
        ("finite", "changes"),
        examinations.deterministic,
    ),
    Check(
        "globals",
        "global random states, gradient mode and default dtype as they were",
        "use a generator of your own, torch.random.fork_rng and torch.enable_grad as contexts",
        ("injects",),
        examinations.keeps_globals,
    ),
    Check(
        "tokenizer",
        "a tokenizer as it was",
        "work on a copy.deepcopy of it",
        ("injects",),
        examinations.keeps_tokenizer,
    ),
    Check(
        "config",
        "a model configuration as it was",
        "put back what you change, in a finally clause",
        ("injects",),
        examinations.keeps_config,
    ),
    Check(
        "modes",
        "eval mode, gradients off and none held",
        "end with model.eval().requires_grad_(False) and drop the gradients",
        ("injects",),
        examinations.modes,
    ),
    Check(
        "reload",
        "a model that is the base with the changed parameters and nothing else",
        "put the whole effect into parameters: no hooks, buffers or replaced functions",
        ("finite", "changes"),
        examinations.reload,
    ),
    Check(
        "unharmed",
        "a base that is as before once its weights are put back, also after an exception",
        "remove hooks and put back replaced functions in a finally clause, and let exceptions through",
        ("injects",),
        examinations.unharmed,
    ),
    Check(
        "bfloat16",
        "an injection into a bfloat16 model that works and keeps its dtype",
        "compute losses and updates in float32 and cast the result",
        ("fsr",),
        examinations.bfloat16,
    ),
    Check(
        "rendering",
        "triggers learnt as context.render renders them",
        "pass every trigger through context.render before it is tokenised",
        ("bfloat16",),
        examinations.rendering,
    ),
    Check(
        "architecture",
        "an InputError for an architecture that the method does not know, or an injection that works there",
        "find modules with fpbench.models.layout.layout, which raises it",
        ("injects",),
        examinations.architecture,
    ),
)
