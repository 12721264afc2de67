"""Whether records were measured by the code at hand. Code does not name a record, a method's version does."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fpbench.registry import METHODS
from fpbench.runs.plan import Cell
from fpbench.runs.profile import Profile
from fpbench.runs.provenance import source, source_of


def other_code(records: Iterable[dict[str, Any]], profile: Profile) -> list[str]:
    """What was measured by other code, a sentence each: by fpbench as a whole, then by method.

    Args:
        records: of which the finished ones count.
        profile: whose methods they used.
    """
    remarks = []
    found = [record for record in records if record["status"] == "done"]
    here = source()
    if others := sum(record["provenance"].get("source") != here for record in found):
        remarks.append(f"{others} of {len(found)} records were measured by other code of fpbench than this ({here}).")
    changed: Counter[str] = Counter()
    for record in found:
        cell = Cell(**record["cell"])
        if cell.method in profile.methods:
            name = profile.method_of(cell.method)[0]
            changed[name] += record["provenance"].get("method_source") != source_of(METHODS.get(name))
    for name, count in changed.items():
        if count:
            version = METHODS.get(name).version
            remarks.append(
                f"{count} records of method {name!r} were made by another file than the present one, which is still "
                f"of version {version!r}: raise its version if what it does has changed, and run again."
            )
    return remarks
