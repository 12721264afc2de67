"""The report, written from its records alone: what was tested, how, how sure, and what would change the conclusion."""

from collections.abc import Mapping
from typing import Any

from fpbench.board.document import Document, Paragraph, Quoted, Section, Table, Terms, Text, say
from fpbench.runs.audits.conclusion import conclusion, same_files
from fpbench.runs.audits.doubts import change, sure, untested
from fpbench.runs.audits.evidence import answers, weights
from fpbench.runs.audits.records import AUDIT, VERIFICATION, Records
from fpbench.runs.audits.words import GLOSSARY, HOW

VERDICTS = {"claim": "a claim", "no claim": "no claim", "undecided": "undecided, and so no claim"}


def report(records: Records, sha256: str, drawn: bytes | None) -> Document:
    """The whole report.

    Args:
        records: the verification, the audit and, where weights were compared, the comparison.
        sha256: of the audit's own record, which cannot hold it.
        drawn: the figure of the comparison, as SVG, if there is one.
    """
    audit = records.content[AUDIT]
    lead = Terms(
        (
            ("Answers", (VERDICTS[audit["verdicts"]["answers"]],)),
            ("Weights", (audit["verdicts"]["weights"] or "not compared",)),
            ("Date (UTC)", (records.of(AUDIT)("/date"),)),
        )
    )
    sections = (
        Section("Conclusion", (Paragraph(conclusion(records)),)),
        _tested(records),
        Section("How it was tested", tuple(Paragraph(say(each)) for each in HOW)),
        answers(records),
        weights(records, drawn),
        sure(records),
        change(records),
        untested(records),
        Section("Words", (Terms(tuple((name, say(meaning)) for name, meaning in GLOSSARY)),)),
        _files(records, sha256),
    )
    return Document(say("Audit of {suspect}", suspect=Quoted(audit["models"]["suspect"]["name"])), lead, sections)


def _tested(records: Records) -> Section:
    """The suspect, and everything that it was held against."""
    audit, show = records.content[AUDIT], records.of(AUDIT)
    models = audit["models"]
    rows: list[tuple[Text, ...]] = [_model("suspect", models["suspect"], "/models/suspect", records)]
    if models["base"] is not None:
        rows.append(_model("base", models["base"], "/models/base", records))
    for number, each in enumerate(models["unrelated"]):
        rows.append(_model("given as unrelated", each, f"/models/unrelated/{number}", records))
    rows.append((("fingerprints",), (Quoted(audit["fingerprints"]["name"]),), (show("/fingerprints/sha256"),)))
    said = [
        say(
            "The set holds {size} fingerprints; {planned} might have been asked, {asked} were. Its digest is {what}.",
            size=records.of(VERIFICATION)("/size", "d"),
            planned=show("/derived/planned", "d"),
            asked=show("/derived/asked", "d"),
            what="that of its commitments, as it is sealed" if audit["fingerprints"]["sealed"] else "that of its pairs",
        )
    ]
    if names := models["called_itself"]:
        called = tuple(part for number in range(len(names)) for part in _called(number, records))
        said.append(say("The server called the model that answered {names}.", names=called))
    if same := same_files(audit):
        said.append(say("Suspect and {names} have the same digest: they are the same model.", names=_all(same)))
    decoding = tuple(
        (name.replace("_", " "), (records.of(VERIFICATION)(f"/decoding/asked/{name}"),))
        for name in records.content[VERIFICATION]["decoding"]["asked"]
    )
    return Section(
        "What was tested",
        (
            Table("Models and set, with the digest (SHA-256) of each", ("what", "name", "digest"), tuple(rows)),
            *map(Paragraph, said),
            Paragraph(say("Responses were asked for in this way:")),
            Terms((*decoding, ("seed", (show("/seed"),)), ("precision of weights", (show("/precision"),)))),
        ),
    )


def _model(what: str, model: Mapping[str, Any], pointer: str, records: Records) -> tuple[Text, ...]:
    digest = say("none: its files are not at hand")
    if model["sha256"] is not None:
        digest = (records.of(AUDIT)(f"{pointer}/sha256"),)
    return (what,), (Quoted(model["name"]),), digest


def _called(number: int, records: Records) -> Text:
    name = records.of(AUDIT)(f"/models/called_itself/{number}")
    return (" and ", name) if number else (name,)


def _all(names: list[str]) -> Text:
    return (Quoted(" and ".join(names)),)


def _files(records: Records, sha256: str) -> Section:
    """The records beside the report, and what made them."""
    audit, show = records.content[AUDIT], records.of(AUDIT)
    rows: list[tuple[Text, ...]] = [((Quoted(name),), (show(f"/files/{name}"),)) for name in audit["files"]]
    rows.append(((Quoted(AUDIT),), (Quoted(sha256),)))
    made = audit["made_by"]
    pairs = [
        ("fpbench", "/made_by/packages/fpbench"),
        ("its source (SHA-256, shortened)", "/made_by/source"),
        ("its commit", "/made_by/git/commit"),
        ("commit changed since", "/made_by/git/dirty"),
        ("Python", "/made_by/python"),
        *((name, f"/made_by/packages/{name}") for name in made["packages"] if name != "fpbench"),
        *((name.replace("_gb", ", GiB").replace("gpu", "GPU"), f"/made_by/machine/{name}") for name in made["machine"]),
    ]
    return Section(
        "Files and digests",
        (
            Paragraph(
                say(
                    "These files stand beside this report. Whoever holds the report can tell by their digests "
                    "(SHA-256) whether they are still what it was written from."
                )
            ),
            Table("Records", ("file", "digest"), tuple(rows)),
            Paragraph(say("Code and machine that made them:")),
            Terms(tuple((name, (show(pointer),)) for name, pointer in pairs)),
        ),
    )
