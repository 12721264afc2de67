"""What a report says about every audit in the same words: how it is done, and what its terms mean."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

from fpbench.board.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Picture,
    Quoted,
    Section,
    Table,
    Terms,
    Text,
    Traced,
    say,
)

HOW = (
    "Two halves, which use different evidence. The first asks the suspect questions and needs nothing but its answers; "
    "the second reads the weights of the suspect and never runs it.",
    "Answers (black box; fpbench protocol 1, § 3). A fingerprint is a trigger, a short text that was hidden in a model "
    "with one or more targets as its answer. Every fingerprint is asked once, in an order drawn by a seed that was "
    "fixed beforehand, and one response is sampled. It matches if it begins with one of the targets. For every "
    "fingerprint there is a chance rate: the largest probability with which a model that does not carry it answers "
    "with a target, computed exactly from the models given as such and never taken below a floor. After each "
    "response the likelihood ratio is updated: how much better the responses so far fit a model that carries the "
    "fingerprints than chance. A claim is made as soon as that ratio, or the number of matches, reaches a bound that "
    "was fixed before the first question so that the level is kept however early the asking ends.",
    "Weights (white box; arXiv 2507.03014). Matrices of the same name and shape are correlated number by number. "
    "Models trained independently of each other give nearly nothing, whatever they have in common; a model that was "
    "fine-tuned, pruned, quantised or edited stays close to what it was made from. Where no shape agrees, the "
    "intrinsic signature of that paper is compared instead: how the spread of the attention matrices changes from "
    "block to block. A signature says something only over enough blocks and held against models known to be unrelated.",
)
GLOSSARY = (
    ("Base", "the model before the fingerprints were put in. It shows how often chance answers with a target."),
    (
        "Chance rate",
        "the probability with which a model that does not carry a fingerprint answers it with a target all the same.",
    ),
    ("Digest", "a long number computed from a file. If one letter of the file is changed, the digest is another one."),
    ("Fingerprint", "a trigger, which is a question, and its targets, which are the answers that count."),
    (
        "Level",
        "the largest probability with which this procedure makes a claim about a model that does not carry the "
        "fingerprints.",
    ),
    (
        "Likelihood ratio",
        "how many times more probable the responses are from a model that answers at least half of the fingerprints "
        "than from chance.",
    ),
    ("Suspect", "the model that was tested."),
    ("Weights", "the numbers that a model consists of, arranged in tables called matrices."),
)


# The records of an audit, and how a report takes figures from them.


VERIFICATION, COMPARISON, AUDIT = "verification.json", "comparison.json", "audit.json"
TRANSCRIPT, FIGURE = "transcript.jsonl", "comparison.svg"
SCHEMA = 1
# The logarithm of the largest number is 709.
LARGEST = 700.0


@dataclass(frozen=True)
class Records:
    """What a report rests on.

    Attributes:
        content: by file name, each as JSON has it.
    """

    content: Mapping[str, Any]

    def of(self, file: str) -> Callable[..., Traced]:
        """Takes a place in a record and, for a number, its format; gives what stands there."""

        def take(pointer: str, form: str = "") -> Traced:
            value = resolve(self.content[file], pointer)
            return Traced(format(value, form) if form else in_words(value), file, pointer, value)

        return take


def resolve(record: Any, pointer: str) -> Any:
    """What stands at a JSON Pointer (RFC 6901).

    Raises:
        LookupError: if there is nothing.
    """
    for step in pointer.split("/")[1:]:
        name = unescaped(step)
        record = record[int(name)] if isinstance(record, list) else record[name]
    return record


def in_words(value: Any) -> str:
    """A value of JSON as a reader wants it."""
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def escaped(name: str) -> str:
    """A name as a step of a JSON Pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def unescaped(step: str) -> str:
    """The name that a step of a JSON Pointer stands for."""
    return step.replace("~1", "/").replace("~0", "~")


def as_text(record: Mapping[str, Any]) -> str:
    """A record as it is written."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def encoded(text: str) -> bytes:
    """JSON as it is written; half a character (a lone surrogate) becomes its escape, which JSON knows too."""
    return text.encode("utf-8", "backslashreplace")


def derived(verification: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that a report shows and that no other record holds, computed from the verification."""
    from fpbench.ownership.sequential import STEP, tolerated_chance

    evidence, level = verification["evidence"], verification["level"]
    matches = [each["target"] is not None for each in evidence]
    planned = verification["size"] - verification["uninformative"]
    if verification["budget"] is not None:
        planned = min(planned, verification["budget"])
    return {
        "asked": len(evidence),
        "planned": planned,
        "one_in": int(1 / level * (1 + 1e-9)),
        "ratio_needed": exp(min(verification["bound"], LARGEST)),
        "ratios": [exp(min(each["log_ratio"], LARGEST)) for each in evidence],
        "tolerated_chance": tolerated_chance(matches, planned, level) if verification["verdict"] == "claim" else None,
        "step": STEP,
    }


def rules() -> dict[str, Any]:
    """The fixed numbers by which the two halves are judged."""
    from fpbench.metrics.claims import FLOOR
    from fpbench.ownership import lineage
    from fpbench.ownership.sequential import CARRIED

    return {
        "least_chance": FLOOR,
        "carried": CARRIED,
        "related": lineage.RELATED,
        "unrelated": lineage.UNRELATED,
        "fewest_blocks": lineage.FEWEST_BLOCKS,
    }


# The evidence of both halves as tables, every figure from its record.


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


# How sure a conclusion is, what would change it, and what it says nothing about.


ALWAYS_UNTESTED = (
    "Who made the suspect, when, from what data, and what its licence allows.",
    "Which of two related models came first.",
    "Other prompts, languages or ways of decoding than those asked for, and fingerprints outside the set.",
    "Whether somebody stands between the questions and the model, who answers some of them differently.",
)


def sure(records: Records) -> Section:
    """What the level means, how far the evidence is from its bounds, and what is assumed."""
    return Section("How sure this is", (Bullets((*_level(records), *_weighed(records), *_assumed(records))),))


def change(records: Records) -> Section:
    """What other answers, models, numbers or choices would have led to another conclusion."""
    return Section("What would change the conclusion", (Bullets((*_answers(records), *_weights(records))),))


def untested(records: Records) -> Section:
    """What nobody looked at."""
    items = [say(each) for each in ALWAYS_UNTESTED]
    audit = records.content[AUDIT]
    if audit["fingerprints"]["sealed"]:
        items.append(
            say("When the commitments of the sealed set were published, and that they are those: check each opening.")
        )
    else:
        items.append(say("Since when the fingerprints exist: the set is not sealed, so nothing here dates it."))
    if audit["not_compared"] is not None:
        items.append(say("The weights: {why}", why=records.of(AUDIT)("/not_compared")))
    return Section("What was not tested", (Bullets(tuple(items)),))


def _level(records: Records) -> Iterator[Text]:
    show, derived = records.of(VERIFICATION), records.of(AUDIT)
    record = records.content[VERIFICATION]
    yield say(
        "The level is {level}: of {many} models that do not carry the fingerprints, tested in this way, one at most is "
        "claimed on average.",
        level=show("/level", "g"),
        many=derived("/derived/one_in", ",d"),
    )
    yield say(
        "The level is not the probability that this suspect does not carry the fingerprints. How probable that is "
        "depends on everything else that is known about it."
    )
    needed = "A claim needs a likelihood ratio of {ratio}"
    needed += "." if record["threshold"] is None else ", or {threshold} matches in any order."
    if record["evidence"]:
        needed += " The ratio after the last response was {reached}, the number of matches {matched}."
    yield say(
        needed,
        ratio=derived("/derived/ratio_needed", ".4g"),
        threshold=show("/threshold"),
        reached=derived(f"/derived/ratios/{len(record['evidence']) - 1}", ".4g") if record["evidence"] else "",
        matched=show("/matched", "d"),
    )
    if record["exact"] is not None:
        yield say(
            "As the suspect is at hand, its probabilities are known exactly: were all fingerprints asked, half of all "
            "tests would give a p-value of {p} or less, and a share of {power} would reach the number of matches that "
            "is enough. The verdict rests on the sampled responses all the same.",
            p=show("/exact/p_value", ".2g"),
            power=show("/exact/power", ".3g"),
        )
    if record["permutation"] is not None:
        yield say(
            "Had a seed dealt the same targets to other triggers, as many matches would have come about with a "
            "probability of {p}. The verdict does not rest on this.",
            p=show("/permutation", ".2g"),
        )


def _weighed(records: Records) -> Iterator[Text]:
    if records.content[AUDIT]["not_compared"] is None:
        yield say(
            "For the weights no error probability is stated. Related means a median correlation of {related} or more, "
            "unrelated one below {unrelated}; between the two nothing is decided. Where no shape agrees, signatures "
            "decide, over {blocks} blocks or more.",
            related=records.of(AUDIT)("/rules/related", "g"),
            unrelated=records.of(AUDIT)("/rules/unrelated", "g"),
            blocks=records.of(AUDIT)("/rules/fewest_blocks", "d"),
        )


def _assumed(records: Records) -> Iterator[Text]:
    record, show = records.content[VERIFICATION], records.of(VERIFICATION)
    least = records.of(AUDIT)("/rules/least_chance", "g")
    if record["null_models"]:
        yield say(
            "Chance was measured on {models} and is never taken below {least}. None of these models is expected to "
            "match more than {most} of {size} fingerprints. Assumed is that no other model without the fingerprints "
            "matches them more often.",
            models=Quoted(", ".join(record["null_models"])),
            least=least,
            most=show("/largest_null", ".2g"),
            size=show("/size", "d"),
        )
    else:
        yield say("The chance rate is assumed to be {least}, not measured: no model was given for that.", least=least)
    yield say("Assumed is that whether one fingerprint matches by chance does not depend on the others.")
    yield say("Assumed is that this was the only test: every further one has its own chance of a false claim.")
    if records.content[AUDIT]["fingerprints"]["built_in"]:
        yield say("The set is published with fpbench. Anybody may have put it into the suspect, or trained on it.")
    else:
        yield say("Assumed is that the set was secret until now: whoever knew it could have put it into the suspect.")
    if "://" in record["suspect"]:
        yield say("Assumed is that the suspect itself answered at the address, and sampled as it was asked to.")


def _answers(records: Records) -> Iterator[Text]:
    record, show, derived = records.content[VERIFICATION], records.of(VERIFICATION), records.of(AUDIT)
    if record["verdict"] == "claim":
        if records.content[AUDIT]["derived"]["tolerated_chance"] is not None:
            yield say(
                "A higher chance rate: were it the same for every fingerprint, these responses would be enough up to a "
                "rate of {rate} (tried in steps of {step}). A model without the fingerprints that answers them more "
                "often than that would take the claim away, or have more of them asked.",
                rate=derived("/derived/tolerated_chance", "g"),
                step=derived("/derived/step", "g"),
            )
        yield say(
            "A stricter level: a claim at one needs a larger ratio, or more matches, and more fingerprints would have "
            "been asked for it."
        )
    elif record["verdict"] == "no claim":
        if record["needed"] is None:
            yield say(
                "More fingerprints would not help at the rate of matches seen: it is not, or hardly, above that of "
                "chance."
            )
        else:
            yield say(
                "More fingerprints: were a larger set to match at the same rate, half of all tests would make a claim "
                "with {needed} fingerprints asked.",
                needed=show("/needed", "d"),
            )
        if derived("/derived/planned").value < record["size"]:
            yield say("A larger budget, or chance rates that leave more fingerprints to be asked.")
        yield say("A laxer level chosen now would not count: it has to be fixed before the first question.")
    else:
        yield say(
            "An answer: a suspect that failed to answer can be asked on from the transcript. One that changed in the "
            "middle cannot: evidence about two models is evidence about neither."
        )
    if not record["null_models"]:
        yield say("A base or unrelated models: with them chance would be measured, and may turn out higher.")
    elif not records.content[AUDIT]["models"]["unrelated"]:
        yield say(
            "Unrelated models: none was given beside the base. One that answers the fingerprints by itself raises the "
            "chance rate."
        )
    else:
        yield say("Further unrelated models: one that answers the fingerprints by itself raises the chance rate.")
    yield say(
        "Repetition: whoever tries several seeds, levels, sets or suspects and reports one of them has as many chances "
        "of a false claim as tries."
    )


def _weights(records: Records) -> Iterator[Text]:
    audit, show = records.content[AUDIT], records.of(COMPARISON)
    if audit["not_compared"] is not None:
        yield say("The weights: if they could be compared, they might support the conclusion or speak against it.")
        return
    record, related = records.content[COMPARISON], audit["rules"]["related"]
    if record["verdict"] == "related":
        yield say(
            "Another base: if the base given is open to everybody, or itself made from another model, related weights "
            "point to that model's family and to nobody in particular."
        )
    else:
        yield say(
            "Rearranged weights: the rows of a model's matrices can be put into another order so that it works the "
            "same, and this comparison does not see through that."
        )
        yield say("Another base: the suspect may have been made from a model that was not given.")
    enough = min(record["blocks"]) >= audit["rules"]["fewest_blocks"]
    if record["weights"] is None and not record["unrelated"] and enough:
        yield say("Unrelated models: without them signatures decide nothing.")
    for name, (of_weights, _) in record["unrelated"].items():
        if of_weights is not None and of_weights["correlation"] >= related:
            yield say(
                "A model given as unrelated is not: {name} correlates with the base at {correlation}. As a measure of "
                "chance it serves, as an example of unrelated weights it does not.",
                name=Quoted(name),
                correlation=show(f"/unrelated/{escaped(name)}/0/correlation", ".3f"),
            )


# What the two halves say together: never more than each of them supports.


ANSWERS: Mapping[str, str] = {
    "claim": (
        "The suspect {suspect} answers the fingerprints of the set {set}: {matched} of the {asked} fingerprints asked "
        "were answered with a target. A model that does not carry the set is claimed with a probability of at most "
        "{level} (one in {one_in})."
    ),
    "no claim": (
        "The suspect {suspect} was not shown to carry the fingerprints of the set {set}: {matched} of the {asked} "
        "fingerprints asked were answered with a target, which is not enough for a claim at the level {level}. That "
        "does not show that the suspect carries none, nor that it is somebody else's."
    ),
    "undecided": (
        "Whether the suspect {suspect} carries the fingerprints of the set {set} could not be tested to the end "
        "({reason}), so no claim is made: {matched} of {asked} fingerprints had been answered with a target until then."
    ),
}
WEIGHTS: Mapping[str | None, str] = {
    "related": "Its weights and those of {base} are related: one descends from the other, or both from a third model.",
    "unrelated": "As they are stored, its weights resemble those of {base} no more than independent ones would.",
    "undecided": "Whether its weights are related to those of {base} could not be decided.",
    None: "Its weights were not compared with others: {not_compared}",
}
TOGETHER: Mapping[tuple[str, str | None], str] = {
    ("claim", "related"): (
        "The two halves agree: this is what a model looks like that was made from one with this set injected. Neither "
        "half shows who made it, or when, or whether that was allowed."
    ),
    ("claim", "unrelated"): (
        "The two halves disagree. The claim about the answers stands at its level, but a descent of the weights is not "
        "shown: the suspect may have learnt the fingerprints in other ways, such as from the answers of a model that "
        "carries them, its weights may have been rearranged, the base given may not be the one, or the claim may be "
        "one of the rare false ones."
    ),
    ("claim", "undecided"): "The conclusion rests on the answers alone; the weights neither support nor weaken it.",
    ("claim", None): "The conclusion rests on the answers alone.",
    ("no claim", "related"): (
        "The two halves do not contradict each other: the suspect shares an origin with the base, as every model made "
        "from that base does, and nothing here shows that it was made from the one that carries the set. The "
        "fingerprints may also have been lost."
    ),
    ("no claim", "unrelated"): (
        "Neither half shows a connection. That is not a proof that there is none: faint fingerprints and rearranged "
        "weights would look like this, too."
    ),
    ("no claim", "undecided"): "Neither half shows a connection, and the weights do not speak against one either.",
    ("no claim", None): "No connection was shown, and only half of the evidence was looked at.",
    ("undecided", "related"): (
        "Related weights alone do not show that the suspect was made from the model that carries the set rather than "
        "from its base."
    ),
    ("undecided", "unrelated"): (
        "Unrelated weights alone do not show that there is no connection: rearranged ones would look like this, too."
    ),
    ("undecided", "undecided"): "Nothing can be concluded.",
    ("undecided", None): "Nothing can be concluded.",
}
SAME = "The files of the suspect are, byte for byte, those of {names}."
ASSUMED = "How often chance answers a fingerprint was assumed, not measured, since no model without the set was given."
PUBLIC = "The set is a public one, which anybody can put into a model, so carrying it points to no owner."


def conclusion(records: Records) -> Text:
    """The conclusion in one paragraph."""
    audit, answers = records.content[AUDIT], records.of(VERIFICATION)
    of_answers, of_weights = audit["verdicts"]["answers"], audit["verdicts"]["weights"]
    models = audit["models"]
    sentences = [
        say(
            ANSWERS[of_answers],
            suspect=Quoted(models["suspect"]["name"]),
            set=Quoted(audit["fingerprints"]["name"]),
            matched=answers("/matched"),
            asked=records.of(AUDIT)("/derived/asked"),
            level=answers("/level", "g"),
            one_in=records.of(AUDIT)("/derived/one_in", ",d"),
            reason=answers("/reason"),
        )
    ]
    if of_answers == "claim":
        sentences += [] if records.content[VERIFICATION]["null_models"] else [say(ASSUMED)]
        sentences += [say(PUBLIC)] if audit["fingerprints"]["built_in"] else []
    base = Quoted(models["base"]["name"] if models["base"] else "")
    sentences.append(say(WEIGHTS[of_weights], base=base, not_compared=records.of(AUDIT)("/not_compared")))
    if same := same_files(audit):
        sentences.append(say(SAME, names=Quoted(" and ".join(same))))
    sentences.append(say(TOGETHER[of_answers, of_weights]))
    return tuple(part for number, text in enumerate(sentences) for part in ((" ", *text) if number else text))


def same_files(audit: Mapping[str, Any]) -> list[str]:
    """Names of the models at hand whose files are those of the suspect."""
    models = audit["models"]
    others = [*([models["base"]] if models["base"] else []), *models["unrelated"]]
    return [each["name"] for each in others if each["sha256"] == models["suspect"]["sha256"]]


# The report, written from its records alone: what was tested, how, how sure, and what would change the conclusion.


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
