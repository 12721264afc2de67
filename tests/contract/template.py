"""The submission template's adapter, from which the tests derive theirs."""

import importlib.util
from typing import Any

from fpbench.checks import Checklist
from fpbench.contract import Finding
from tests.conftest import ROOT, registered_for_now

ADAPTER = ROOT / "submissions" / "_template" / "adapter.py"


def load() -> type:
    """Return the template's class without leaving it registered."""
    specification = importlib.util.spec_from_file_location("template_adapter", ADAPTER)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with registered_for_now():
        specification.loader.exec_module(module)
    (found,) = [each for each in vars(module).values() if getattr(each, "name", None) == "last_block_tuning"]
    return found


Template: Any = load()


def told(findings: list[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings if not finding.passed)


def needed(checks: Checklist[Any], name: str) -> set[str]:
    """A check and those without which it means nothing."""
    (found,) = [each for each in checks if each.name == name]
    return {name}.union(*(needed(checks, need) for need in found.needs))


def shortened(checks: Checklist[Any], name: str) -> Checklist[Any]:
    """The checks up to one of them that it needs, itself the last."""
    found: Checklist[Any] = Checklist()
    for each in checks:
        if each.name in needed(checks, name):
            found.add(each.name, each.expected, each.remedy, each.needs)(each.examine)
    return found
