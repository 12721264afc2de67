"""fpbench: the evaluation benchmark harness for LLM fingerprinting.

The public API is the list below. Names are imported on first use, so that ``import fpbench`` does not load torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Fingerprint": "fpbench.fingerprints",
    "FingerprintSet": "fpbench.fingerprints",
    "load_fingerprints": "fpbench.fingerprints",
    "FingerprintMethod": "fpbench.methods.base",
    "MethodConfig": "fpbench.methods.base",
    "register": "fpbench.registry",
    "inject": "fpbench.runs.api",
    "modify": "fpbench.runs.api",
    "fsr": "fpbench.metrics.fsr",
    "triggers": "fpbench.metrics.triggers",
    "price": "fpbench.runs.api",
    "run": "fpbench.runs.api",
    "Adversary": "fpbench.adversaries.base",
    "compare": "fpbench.ownership.lineage",
    "parents": "fpbench.ownership.parents",
    "evaluate": "fpbench.runs.api",
    "verify": "fpbench.ownership.verify",
    "leaderboard": "fpbench.board.leaderboard",
}
__all__ = [
    "Adversary",
    "Fingerprint",
    "FingerprintMethod",
    "FingerprintSet",
    "MethodConfig",
    "compare",
    "evaluate",
    "fsr",
    "inject",
    "leaderboard",
    "load_fingerprints",
    "modify",
    "parents",
    "price",
    "register",
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
