"""The result of a verification: the verdict, what it means, and the evidence for it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import exp
from typing import Any, Literal

from fpbench.board.document import Quoted, Records, Table, Text, as_terminal, plain, say
from fpbench.metrics.claims import FLOOR, Claim
from fpbench.ownership.evidence import RULES, SAMPLES
from fpbench.text import printable, visible, writable

# A match has the evidence of a claim, from a set that nothing dates (protocol §3).
Verdict = Literal["claim", "match", "no claim", "undecided"]
Dated = Literal["sealed", "built in"]
WEAKER = 3  # times the suspect's perplexity, above which a null model is named as weaker
FILE = "verification.json"  # its record in an audit
SHOWN = 60  # characters of a response in the table


@dataclass(frozen=True)
class Evidence:
    """One fingerprint that was asked."""

    place: int  # in the set, from 1
    trigger: str  # what was sent
    targets: tuple[str, ...]  # what counts as a match
    response: str  # what came back, leading whitespace stripped
    target: str | None  # the one that it matches by the rule of evidence; None for a miss
    lenient: str | None  # the same, where what hides a match is not looked at (protocol §3); shown, and never counted
    anywhere: str | None  # the same, or else a target that stands further on; shown, and never counted
    null: float  # q̄_i
    log_ratio: float  # log-likelihood ratio (nats) of this response and all before it
    seed: int  # of the request
    details: Mapping[str, Any]  # what else a server said: why the response ended, a refusal, log-probabilities


@dataclass(frozen=True, repr=False)
class Verification:
    """The result of :func:`fpbench.verify`."""

    verdict: Verdict  # undecided where the suspect did not let the test be finished
    reason: str  # why the asking ended
    suspect: str  # folder, hub id or URL
    fingerprints: str  # name of the set
    size: int  # of the set
    dated: Dated | None  # what shows that the set was not made after the suspect had answered; None for nothing
    level: float  # α, the largest probability of claiming a model that does not carry the fingerprints
    null_models: tuple[str, ...]  # those that null rates come from; without one every rate is the floor, an assumption
    largest_null: float | None  # most matches to be expected of any null model; None without one
    # null models of much higher perplexity than the suspect, and how many times; None where this was not measured
    weaker: tuple[tuple[str, float], ...] | None
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
    rule: str = "prefix"  # of evidence: what counts as a match
    remarks: tuple[str, ...] = ()  # what is to be said of a suspect at hand, such as that its base's tokenizer served

    def __repr__(self) -> str:
        said = f"{self.matched} of {len(self.evidence)} asked match, level {self.level:g}"
        return (
            f"Verification of {self.suspect} with {self.fingerprints!r}: {self.verdict} ({said})\n  .summary() says why"
        )

    @property
    def matched(self) -> int:
        """The number of fingerprints whose response matches by the rule of evidence."""
        return sum(each.target is not None for each in self.evidence)

    @property
    def counts(self) -> dict[str, int]:
        """The number of matches as they count, read leniently, and with a target anywhere in the response."""
        lenient = sum(each.lenient is not None for each in self.evidence)
        anywhere = sum(each.anywhere is not None for each in self.evidence)
        return {"matched": self.matched, "matched_leniently": lenient, "matched_anywhere": anywhere}

    @property
    def ratios(self) -> list[float]:
        """The likelihood ratio after every response."""
        return [ratio(each.log_ratio) for each in self.evidence]

    def as_json(self) -> str:
        """Return everything as a JSON object."""
        text = json.dumps({"schema": 1} | asdict(self) | self.counts, indent=1, ensure_ascii=False)
        return writable(text) + "\n"

    def summary(self) -> str:
        """Return the verdict in plain language, the evidence per fingerprint, and what it rests on."""
        derived = {"ratios": self.ratios, "asked": len(self.evidence)}
        audited = {"derived": derived, "rules": {"least_chance": FLOOR, "weaker": WEAKER}}
        records = Records({FILE: asdict(self) | self.counts, "audit.json": audited})
        assumed = [f"- {visible(plain(each))}" for each in assumptions(records)]
        parts = [
            visible(plain(hidden)) if (hidden := hidden_matches(records)) else "",
            self._verdict(),
            as_terminal(evidence_table(records)) if self.evidence else "",
            "\n".join(self._grounds()),
            "\n".join(["What this rests on:", *assumed]),
        ]
        return "\n\n".join(part for part in parts if part)

    def _verdict(self) -> str:
        counted = f"{self.matched} of the {len(self.evidence)} fingerprints asked were answered with a target"
        if self.rule != "prefix":
            counted += f" (by the rule {self.rule!r}: {RULES[self.rule]})"
        if self.verdict == "claim":
            return (
                f"CLAIM: {self.suspect} carries the fingerprints of {self.fingerprints}.\n{counted}. "
                f"A model that does not carry them is claimed with a probability of at most {self.level:g}."
            )
        if self.verdict == "match":
            return (
                f"MATCH, and no claim: {self.suspect} answers the fingerprints of {self.fingerprints}.\n{counted}. "
                "A claim needs a set that was sealed before the suspect was seen, or dated by somebody else: see "
                "`fpbench fingerprints seal`."
            )
        if self.verdict == "undecided":
            return f"UNDECIDED, and so no claim: {self.reason}.\n{counted} before that."
        needed = "At the rate seen no number of fingerprints would be enough: chance alone matches about as often."
        if self.needed is None and self.counts["matched_anywhere"] > self.matched:
            needed = NOT_KNOWN
        if self.needed is not None:
            needed = (
                f"Were a larger set to match at the same rate, half of all tests would claim with {self.needed} "
                "fingerprints asked."
            )
        return (
            f"NO CLAIM: {self.suspect} was not shown to carry the fingerprints of {self.fingerprints}: {self.reason}.\n"
            f"{counted}. It may carry them all the same.\n{needed}"
        )

    def _grounds(self) -> list[str]:
        allowed = "" if self.budget is None else f" of at most {self.budget}"
        needed = f"a ratio of {ratio(self.bound):.4g}"
        if self.threshold is not None:
            needed += f", or {self.threshold} matches in any order"
        lines = [f"Queries: {self.queries}{allowed}. For a claim at {self.level:g}: {needed}."]
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
            lines.append(self._decoded())
        lines += [f"{self.suspect}: {remark}." for remark in self.remarks]
        return lines

    def _decoded(self) -> str:
        """Say which fields and numbers of the requests the server took."""
        refused = ", ".join(self.decoding["refused"])
        accepted = ", ".join(f"{name} {value}" for name, value in self.decoding["accepted"].items() if name != "seed")
        if accepted:
            return f"The server {f'turned down {refused} and ' if refused else ''}accepted {accepted}."
        if self.evidence:
            return f"The server turned down {refused}: it sampled with numbers of its own."
        return f"The server {f'turned down {refused} and ' if refused else ''}never answered."


NOT_KNOWN = "How many fingerprints would be enough is not known, since matches may be hidden (see the other counts)."


def hidden_matches(records: Records) -> Text | None:
    """Return what to say first where other counts of matches differ from the strict one; ``None`` where none does."""
    counts = [records[f"{FILE}/{name}"] for name in ("matched", "matched_leniently", "matched_anywhere")]
    if counts[2] == counts[0] or records[f"{FILE}/rule"] != "prefix":
        return None
    return records.say(
        "Matches may be hidden. As matches are counted, {verification.json/matched:d} of the "
        "{audit.json/derived/asked:d} responses begin with a target; {verification.json/matched_leniently:d} do where "
        "case, invisible characters, compatibility forms and opening quotes, brackets and Markdown marks are left out, "
        "and {verification.json/matched_anywhere:d} have a target somewhere. The verdict rests on the first count."
    )


def assumptions(records: Records) -> Iterator[Text]:
    """Yield what a verdict about answers rests on besides the answers, the same in :meth:`summary` and in an audit."""
    if models := records[f"{FILE}/null_models"]:
        yield records.say(
            "Chance is the largest rate of {models}, and at least {audit.json/rules/least_chance:g}. Each of these "
            "models is expected to match at most {verification.json/largest_null:.2g} of {verification.json/size:d} "
            "fingerprints. Assumed is that every other model without the fingerprints matches them as rarely.",
            models=Quoted(", ".join(models)),
        )
        if (how := BOUNDED.get(records[f"{FILE}/rule"])) is not None:
            yield say(how)
        yield from _strength(records)
    else:
        yield records.say(
            "The chance rate is assumed to be {audit.json/rules/least_chance:g} a fingerprint, not measured: no model "
            "was given for that (a base, or unrelated models)."
        )
    yield say("Assumed is that whether one fingerprint matches by chance does not depend on the others.")
    yield say("Assumed is that this was the only test: every further one has its own chance of a false claim.")
    yield say(DATES[records[f"{FILE}/dated"]])
    if "://" in records[f"{FILE}/suspect"]:
        yield say("Assumed is that the suspect itself answered at the address, and sampled as it was asked to.")


BOUNDED = {
    "lenient": (
        f"These rates are no exact ones: each is the upper end, at 95 %, of that of {SAMPLES} sampled responses."
    ),
    "rank": (
        "These rates are no exact ones: each is the upper end, at 95 %, of the share of ordinary prompts after which a "
        "target is listed. A model at hand lists the same whenever it is asked."
    ),
}
DATES: Mapping[Dated | None, str] = {
    "built in": "The set is published with fpbench. Anybody may have put it into the suspect, or trained on it.",
    "sealed": (
        "Assumed is that the commitments of the set were published before anybody saw the suspect answer, and that the "
        "set was secret until now: whoever knew it could have put it into the suspect."
    ),
    None: (
        "Nothing dates the set: whoever picks triggers and targets after seeing answers gets matches from any model. "
        "It therefore supports a match at most, and no claim. Assumed is that the set was secret until now: whoever "
        "knew it could have put it into the suspect."
    ),
}


def _strength(records: Records) -> Iterator[Text]:
    """Name null models that are too weak to show what chance does in a model like the suspect."""
    weaker = records[f"{FILE}/weaker"]
    if weaker is None:
        yield say("Assumed is that these models are about as strong as the suspect: their perplexity was not compared.")
    for number, (name, _) in enumerate(weaker or ()):
        yield records.say(
            "{name} is much weaker than the suspect: its perplexity on the same text is "
            f"{{verification.json/weaker/{number}/1:.3g}} times as high (more than "
            "{audit.json/rules/weaker:d} counts as much). Chance measured on it may be too low.",
            name=Quoted(name),
        )


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
                _match(each),
                (records.show(f"{here}/null", ".2g"),),
                (records.show(f"audit.json/derived/ratios/{number}", ".4g"),),
            )
        )
    headers = ("place in the set", "trigger", "response", "matches", "chance rate", "likelihood ratio so far")
    return Table("Fingerprints in the order of asking", headers, tuple(rows))


def _match(each: Mapping[str, Any]) -> Text:
    """Return whether, and how, the response to a fingerprint matches."""
    for how, words in (("target", "yes"), ("lenient", "no, but leniently"), ("anywhere", "no, but further on")):
        if each[how] is not None:
            return say(f"{words}, {{target}}", target=Quoted(each[how]))
    return say("no")
