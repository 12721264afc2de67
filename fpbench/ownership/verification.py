"""The result of a verification: the verdict, what it means, and the evidence for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp
from typing import Any, Literal

from fpbench.board.document import Quoted, Records, Table, as_terminal, say
from fpbench.metrics.claims import FLOOR, Claim
from fpbench.text import printable, writable

Verdict = Literal["claim", "no claim", "undecided"]
FILE = "verification.json"  # its record in an audit
SHOWN = 60  # characters of a response in the table


@dataclass(frozen=True)
class Evidence:
    """One fingerprint that was asked."""

    place: int  # in the set, from 1
    trigger: str  # what was sent
    targets: tuple[str, ...]  # what counts as a match
    response: str  # what came back, leading whitespace stripped
    target: str | None  # the longest target that it begins with; None for a miss
    null: float  # q̄_i
    log_ratio: float  # log-likelihood ratio (nats) of this response and all before it
    seed: int  # of the request
    details: Mapping[str, Any]  # what else a server said: why the response ended, a refusal, log-probabilities


@dataclass(frozen=True)
class Verification:
    """The result of :func:`fpbench.verify`."""

    verdict: Verdict  # undecided where the suspect did not let the test be finished
    reason: str  # why the asking ended
    suspect: str  # folder, hub id or URL
    fingerprints: str  # name of the set
    size: int  # of the set
    level: float  # α, the largest probability of claiming a model that does not carry the fingerprints
    null_models: tuple[str, ...]  # those that null rates come from; without one every rate is the floor, an assumption
    largest_null: float | None  # most matches to be expected of any null model; None without one
    uninformative: int  # fingerprints never asked because a null model answers them half of the time or more
    bound: float  # log-likelihood ratio (nats) at which a claim is made
    threshold: int | None  # matches that are enough for a claim in any order; None if no number is
    evidence: tuple[Evidence, ...]  # the fingerprints asked, in the order of asking
    queries: int  # requests sent, those without an answer included
    budget: int | None  # requests that were allowed; None for no limit
    # p-value of the dealing of targets to triggers, for sets whose recipe says that a seed dealt them; None for others
    permutation: float | None
    # fingerprints needed for a claim at the match rate seen; None if no number would do, or the verdict is another
    needed: int | None
    # the test from the suspect's exact probabilities, which only a model at hand has; without a null model one that
    # never matches stands in
    exact: Claim | None
    decoding: Mapping[str, Any]  # the numbers asked for, and those that a server took
    revealed: tuple[Mapping[str, Any], ...]  # of a sealed set: openings of the fingerprints asked, and of no others
    remarks: tuple[str, ...] = ()  # what is to be said of a suspect at hand, such as that its base's tokenizer served

    @property
    def matched(self) -> int:
        """The number of fingerprints whose response begins with a target."""
        return sum(each.target is not None for each in self.evidence)

    @property
    def ratios(self) -> list[float]:
        """The likelihood ratio after every response."""
        return [ratio(each.log_ratio) for each in self.evidence]

    def as_json(self) -> str:
        """Return everything as a JSON object."""
        text = json.dumps({"schema": 1} | asdict(self) | {"matched": self.matched}, indent=1, ensure_ascii=False)
        return writable(text) + "\n"

    def summary(self) -> str:
        """Return the verdict in plain language, the evidence per fingerprint, and what it rests on."""
        table = evidence_table(Records({FILE: asdict(self), "audit.json": {"derived": {"ratios": self.ratios}}}))
        parts = [self._verdict(), as_terminal(table) if self.evidence else "", "\n".join(self._grounds())]
        return "\n\n".join(part for part in parts if part)

    def _verdict(self) -> str:
        counted = f"{self.matched} of the {len(self.evidence)} fingerprints asked were answered with a target"
        if self.verdict == "claim":
            return (
                f"CLAIM: {self.suspect} carries the fingerprints of {self.fingerprints}.\n{counted}. "
                f"A model that does not carry them is claimed with a probability of at most {self.level:g}."
            )
        if self.verdict == "undecided":
            return f"UNDECIDED, and so no claim: {self.reason}.\n{counted} before that."
        needed = (
            "At the rate seen no number of fingerprints would be enough: it is not, or hardly, above that of chance."
        )
        if self.needed is not None:
            needed = (
                f"Were a larger set to match at the same rate, half of all tests would claim with {self.needed} "
                "fingerprints asked."
            )
        return (
            f"NO CLAIM: {self.suspect} was not shown to carry the fingerprints of {self.fingerprints}: {self.reason}.\n"
            f"{counted}. That does not show that it is unrelated.\n{needed}"
        )

    def _grounds(self) -> list[str]:
        allowed = "" if self.budget is None else f" of at most {self.budget}"
        needed = f"a ratio of {ratio(self.bound):.4g}"
        if self.threshold is not None:
            needed += f", or {self.threshold} matches in any order"
        lines = [f"Queries: {self.queries}{allowed}. For a claim at {self.level:g}: {needed}."]
        if self.null_models:
            lines.append(
                f"By chance: the largest rate of {', '.join(self.null_models)}, at least {FLOOR}; "
                f"none of them is expected to match more than {self.largest_null:.2g} of {self.size}."
            )
        else:
            measurable = "a base or unrelated models would let it be measured"
            lines.append(f"By chance: assumed to be {FLOOR} a fingerprint; {measurable}.")
        if self.uninformative:
            lines.append(f"Not asked: {self.uninformative} fingerprints that a null model answers half of the time.")
        if self.permutation is not None:
            lines.append(
                f"Dealing the targets to the triggers anew gives as many matches with p = {self.permutation:.2g} "
                "(for a number of questions fixed beforehand; the verdict does not rest on it)."
            )
        if self.exact is not None:
            lines.append(
                f"From the model's exact probabilities, were all {self.size} asked: median p-value "
                f"{self.exact.p_value:.2g}, power {self.exact.power:.1%}."
            )
        if "://" in self.suspect:
            refused = ", ".join(self.decoding["refused"]) or "nothing"
            numbers = (f"{name} {value}" for name, value in self.decoding["accepted"].items() if name != "seed")
            accepted = ", ".join(numbers) or "none of the numbers"
            lines.append(f"The server turned down {refused}; it did not refuse {accepted}.")
        lines += [f"{self.suspect}: {remark}." for remark in self.remarks]
        lines.append("Assumed: whether one fingerprint matches by chance does not depend on the others.")
        return lines


def ratio(logarithm: float) -> float:
    """Return the likelihood ratio of a log-likelihood ratio, or about the largest number that a float holds."""
    return exp(min(logarithm, 700.0))  # the largest float has a logarithm of 709


def evidence_table(records: Records) -> Table:
    """Return a line for every fingerprint that was asked, in order; likelihood ratios come from the audit's record."""
    rows = []
    for number, each in enumerate(records[f"{FILE}/evidence"]):
        here, nothing = f"{FILE}/evidence/{number}", "(refused)" if "refusal" in each["details"] else "(empty)"
        rows.append(
            (
                (records.show(f"{here}/place", "d"),),
                (Quoted(each["trigger"]),),
                (Quoted(printable(each["response"], SHOWN) or nothing),),
                say("no") if each["target"] is None else say("yes, {target}", target=Quoted(each["target"])),
                (records.show(f"{here}/null", ".2g"),),
                (records.show(f"audit.json/derived/ratios/{number}", ".4g"),),
            )
        )
    headers = ("place in the set", "trigger", "response", "matches", "chance rate", "likelihood ratio so far")
    return Table("Fingerprints in the order of asking", headers, tuple(rows))
