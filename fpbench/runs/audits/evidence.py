"""The evidence of both halves as tables, every figure from its record."""

from collections.abc import Mapping
from typing import Any

from fpbench.board.document import Block, Paragraph, Picture, Quoted, Section, Table, Text, say
from fpbench.runs.audits.records import AUDIT, COMPARISON, FIGURE, VERIFICATION, Records, escaped

SHOWN = 60  # characters of a response
NOTHING: Text = ("–",)
ASKED = ("place in the set", "trigger", "response", "matches", "chance rate", "likelihood ratio so far")
COMPARED = (
    "compared with",
    "matrices",
    "median correlation",
    "lowest",
    "highest",
    "signature",
    "its 95 % interval",
    "blocks in random order",
)


def answers(records: Records) -> Section:
    """What every fingerprint that was asked was answered with, in the order of asking."""
    record, show, derived = records.content[VERIFICATION], records.of(VERIFICATION), records.of(AUDIT)
    rows = tuple(
        (
            (show(f"/evidence/{number}/place", "d"),),
            (Quoted(each["trigger"]),),
            (Quoted(_short(each)),),
            say("no") if each["target"] is None else say("yes, {target}", target=Quoted(each["target"])),
            (show(f"/evidence/{number}/null", ".2g"),),
            (derived(f"/derived/ratios/{number}", ".4g"),),
        )
        for number, each in enumerate(record["evidence"])
    )
    said = [
        say(
            "{queries} requests were sent, those without an answer included. The asking ended because {reason}.",
            queries=show("/queries", "d"),
            reason=show("/reason"),
        )
    ]
    if record["budget"] is not None:
        said.append(say("At most {budget} requests were allowed.", budget=show("/budget", "d")))
    if record["uninformative"]:
        said.append(
            say(
                "{count} fingerprints were never asked, because a model without them answers them half of the time or "
                "more.",
                count=show("/uninformative", "d"),
            )
        )
    if refused := record["decoding"]["refused"]:
        said.append(say("The server turned down {fields}.", fields=Quoted(", ".join(refused))))
    table = [Table("Fingerprints in the order of asking", ASKED, rows)] if rows else []
    return Section("Evidence from answers", (*table, Paragraph(_joined(said))))


def weights(records: Records, drawn: bytes | None) -> Section:
    """How the matrices and signatures of the base compare with those of the suspect and of unrelated models."""
    audit = records.content[AUDIT]
    if audit["not_compared"] is not None:
        text = say("The weights were not compared: {why}", why=records.of(AUDIT)("/not_compared"))
        return Section("Evidence from weights", (Paragraph(text),))
    record, show = records.content[COMPARISON], records.of(COMPARISON)
    lines: list[tuple[Text, Any, Any, str, str]] = [
        (say("the suspect"), record["weights"], record["signature"], "/weights", "/signature")
    ]
    for name, (of_weights, of_signature) in record["unrelated"].items():
        here = f"/unrelated/{escaped(name)}"
        head = say("{name}, given as unrelated", name=Quoted(name))
        lines.append((head, of_weights, of_signature, f"{here}/0", f"{here}/1"))
    rows = tuple(
        (head, *_matrices(of_weights, at_weights, records), *_signature(of_signature, at_signature, records))
        for head, of_weights, of_signature, at_weights, at_signature in lines
    )
    blocks: list[Block] = [
        Paragraph(
            say(
                "The base has {one} blocks, the suspect {other}. Verdict: {verdict}. Reason: {reason}",
                one=show("/blocks/0", "d"),
                other=show("/blocks/1", "d"),
                verdict=show("/verdict"),
                reason=show("/reason"),
            )
        ),
        Table("The base, compared by weights and by signature (correlations, Pearson's)", COMPARED, rows),
    ]
    if drawn is not None:
        seen = "The signatures: spread of the attention matrices from the first block to the last, each normalised."
        few = min(record["blocks"]) < audit["rules"]["fewest_blocks"]
        seen += " Over so few blocks they say nothing by themselves." if few else ""
        blocks.append(Picture(FIGURE, drawn, "Signatures of the base and of the suspect, block by block", seen))
    return Section("Evidence from weights", tuple(blocks))


def _matrices(found: Mapping[str, Any] | None, here: str, records: Records) -> tuple[Text, ...]:
    if found is None:
        return say("none of one shape"), NOTHING, NOTHING, NOTHING
    show = records.of(COMPARISON)
    figures = ((show(f"{here}/{name}", ".3f"),) for name in ("correlation", "lowest", "highest"))
    return ((show(f"{here}/matrices", "d"),), *figures)


def _signature(found: Mapping[str, Any] | None, here: str, records: Records) -> tuple[Text, ...]:
    if found is None:
        return NOTHING, NOTHING, NOTHING
    show = records.of(COMPARISON)
    spans = (
        say("{low} to {high}", low=show(f"{here}/{name}/0", ".2f"), high=show(f"{here}/{name}/1", ".2f"))
        for name in ("interval", "chance")
    )
    return ((show(f"{here}/correlation", ".3f"),), *spans)


def _short(evidence: Mapping[str, Any]) -> str:
    words = " ".join(evidence["response"].split())
    if not words:
        return "(refused)" if "refusal" in evidence["details"] else "(empty)"
    return words if len(words) <= SHOWN else f"{words[:SHOWN]} …"


def _joined(texts: list[Text]) -> Text:
    return tuple(part for number, text in enumerate(texts) for part in ((" ", *text) if number else text))
