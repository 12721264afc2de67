"""fpbench: the evaluation benchmark harness for LLM fingerprinting.

Score a method, a checkpoint or a suspect, and read what was measured::

    import fpbench

    runs = fpbench.run(profile="micro", methods=["mcedit_a"], out="my-run")
    runs.to_pandas()                            # one line a figure; fpbench.results("my-run") reads it again
    pairs = fpbench.load_fingerprints("nlf")    # or a file, or a list of {"trigger": ..., "targets": [...]}
    report = fpbench.inject(model, tokenizer, pairs, method="mcedit_a")
    model = fpbench.modify(model, tokenizer, "nf4")
    fpbench.fsr(model, tokenizer, pairs)        # exact, with its interval; adversary="suppress@3"

Runs: ``run``, ``evaluate``, ``results``, ``leaderboard``. One model: ``inject``, ``modify``, ``fsr``, ``triggers``,
``price``. Ownership: ``verify``, ``compare``, ``audit``. Your own: ``register``, ``FingerprintMethod``,
``MethodConfig``, ``Adversary``. What there is: ``list_registered``, ``load_fingerprints``.

Names are imported on first use, so that ``import fpbench`` does not load torch. Wrong input, of another type, too, is a
:class:`fpbench.errors.InputError` before any work.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpbench.adversaries.base import Adversary as Adversary
    from fpbench.board.leaderboard import leaderboard as leaderboard
    from fpbench.board.results import Results as Results
    from fpbench.board.results import results as results
    from fpbench.fingerprints import (
        Fingerprint as Fingerprint,
    )
    from fpbench.fingerprints import (
        FingerprintSet as FingerprintSet,
    )
    from fpbench.fingerprints import (
        load_fingerprints as load_fingerprints,
    )
    from fpbench.methods.base import FingerprintMethod as FingerprintMethod
    from fpbench.methods.base import MethodConfig as MethodConfig
    from fpbench.metrics.fsr import fsr as fsr
    from fpbench.metrics.triggers import triggers as triggers
    from fpbench.ownership.audit import audit as audit
    from fpbench.ownership.lineage import compare as compare
    from fpbench.ownership.verify import verify as verify
    from fpbench.registry import register as register
    from fpbench.runs.api import evaluate as evaluate
    from fpbench.runs.api import inject as inject
    from fpbench.runs.api import modify as modify
    from fpbench.runs.api import price as price
    from fpbench.runs.api import run as run
    from fpbench.runs.catalogue import list_registered as list_registered

__version__ = "0.1.0"
__released__ = "2026-11-28"  # the day of that version

_WHERE = {
    "Adversary": "fpbench.adversaries.base",
    "Fingerprint": "fpbench.fingerprints",
    "FingerprintMethod": "fpbench.methods.base",
    "FingerprintSet": "fpbench.fingerprints",
    "MethodConfig": "fpbench.methods.base",
    "Results": "fpbench.board.results",
    "audit": "fpbench.ownership.audit",
    "compare": "fpbench.ownership.lineage",
    "parents": "fpbench.ownership.parents",
    "evaluate": "fpbench.runs.api",
    "fsr": "fpbench.metrics.fsr",
    "inject": "fpbench.runs.api",
    "leaderboard": "fpbench.board.leaderboard",
    "list_registered": "fpbench.runs.catalogue",
    "load_fingerprints": "fpbench.fingerprints",
    "modify": "fpbench.runs.api",
    "price": "fpbench.runs.api",
    "register": "fpbench.registry",
    "results": "fpbench.board.results",
    "run": "fpbench.runs.api",
    "triggers": "fpbench.metrics.triggers",
    "verify": "fpbench.ownership.verify",
}
__all__ = [
    "Adversary",
    "Fingerprint",
    "FingerprintMethod",
    "FingerprintSet",
    "MethodConfig",
    "Results",
    "audit",
    "compare",
    "evaluate",
    "fsr",
    "inject",
    "leaderboard",
    "list_registered",
    "load_fingerprints",
    "modify",
    "parents",
    "price",
    "register",
    "results",
    "run",
    "triggers",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fpbench' has no attribute {name!r}")
    importlib.import_module("fpbench.submissions.discovery").register_submissions()
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
