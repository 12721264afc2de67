"""The report of an audit, written from its records alone: what was tested, how, how sure, what would change it.

In its sentences ``{audit.json/date}`` stands for what the record ``audit.json`` holds at ``/date``, traced to it.
"""

from collections.abc import Iterator, Mapping, Sequence

from fpbench.board.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Picture,
    Quoted,
    Records,
    Section,
    Table,
    Terms,
    Text,
    say,
    step,
)
from fpbench.ownership.lineage import comparison_table
from fpbench.ownership.verification import NOT_KNOWN, assumptions, evidence_table, hidden_matches

AUDIT, FIGURE = "audit.json", "comparison.svg"
VERDICTS = {
    "claim": "a claim",
    "match": "a match, and no claim",
    "no claim": "no claim",
    "undecided": "undecided, and so no claim",
}


def report(records: Records, sha256: str, drawn: bytes | None) -> Document:
    """Return the whole report.

    Args:
        records: the verification, the audit and, where weights were compared, the comparison.
        sha256: of the audit's own record, which cannot hold it.
        drawn: the figure of the comparison, as SVG, if there is one.
    """
    hidden = hidden_matches(records)
    lead = (
        *([("Note", hidden)] if hidden else []),
        ("Answers", (VERDICTS[records["audit.json/verdicts/answers"]],)),
        ("Weights", (records["audit.json/verdicts/weights"] or "not compared",)),
        ("Date (UTC)", (records.show("audit.json/date"),)),
    )
    changes = (*_other_answers(records), *_other_models(records), *_other_weights(records))
    sections = (
        Section("Conclusion", (Paragraph(conclusion(records)),)),
        Section("What was tested", tuple(_tested(records))),
        Section("How it was tested", tuple(Paragraph(say(each)) for each in HOW)),
        Section("Evidence from answers", tuple(_answers(records))),
        Section("Evidence from weights", tuple(_weights(records, drawn))),
        Section("How sure this is", (Bullets((*_level(records), *_assumed(records))),)),
        Section("What would change the conclusion", (Bullets(changes),)),
        Section("What was not tested", (Bullets(tuple(_untested(records))),)),
        Section("Words", (Terms(tuple((name, say(meaning)) for name, meaning in GLOSSARY.items())),)),
        Section("Files and digests", tuple(_files(records, sha256))),
    )
    suspect = Quoted(records["audit.json/models/suspect/name"])
    return Document(say("Audit of {suspect}", suspect=suspect), Terms(lead), sections)


# Conclusion: what the two halves say together, never more than each of them supports.
ANSWERS: Mapping[str, str] = {
    "claim": (
        "The suspect {suspect} answers the fingerprints of the set {set}: {verification.json/matched} of the "
        "{audit.json/derived/asked} fingerprints asked were answered with a target. A model that does not carry the "
        "set is claimed with a probability of at most {verification.json/level:g} (one in "
        "{audit.json/derived/one_in:,d})."
    ),
    "match": (
        "The suspect {suspect} answers the fingerprints of the set {set}: {verification.json/matched} of the "
        "{audit.json/derived/asked} fingerprints asked were answered with a target. That is a match and no claim, "
        "since nothing shows that the set was fixed before the suspect answered: it is not sealed, and nobody else "
        "dated it."
    ),
    "no claim": (
        "The suspect {suspect} was not shown to carry the fingerprints of the set {set}: {verification.json/matched} "
        "of the {audit.json/derived/asked} fingerprints asked were answered with a target, which is not enough for a "
        "claim at the level {verification.json/level:g}. It may carry them all the same."
    ),
    "undecided": (
        "Whether the suspect {suspect} carries the fingerprints of the set {set} could not be tested to the end "
        "({verification.json/reason}), so no claim is made: {verification.json/matched} of {audit.json/derived/asked} "
        "fingerprints had been answered with a target until then."
    ),
}
WEIGHTS: Mapping[str | None, str] = {
    "related": "Its weights and those of {base} are related: one descends from the other, or both from a third model.",
    "unrelated": "As they are stored, its weights resemble those of {base} no more than independent ones would.",
    "undecided": "Whether its weights are related to those of {base} could not be decided.",
    None: "Its weights were not compared with others: {audit.json/not_compared}",
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
    ("claim", "undecided"): "The conclusion rests on the answers alone; the weights leave it as it is.",
    ("claim", None): "The conclusion rests on the answers alone.",
    ("match", "related"): (
        "The two halves agree, as they do for a model that was made from one with this set injected. They also agree "
        "for any other model made from the base, if the set was chosen from what that model answers."
    ),
    ("match", "unrelated"): (
        "The two halves disagree: a descent of the weights is not shown, and a set chosen from the suspect's own "
        "answers matches whatever its weights are."
    ),
    ("match", "undecided"): "The match rests on the answers alone; the weights leave it as it is.",
    ("match", None): "The match rests on the answers alone.",
    ("no claim", "related"): (
        "The two halves fit together: the suspect shares an origin with the base, as every model made from that base "
        "does. A descent from the model that carries the set is not shown; the fingerprints may also have been lost."
    ),
    ("no claim", "unrelated"): (
        "Neither half shows a connection. There may be one all the same: faint fingerprints and rearranged weights "
        "would look like this, too."
    ),
    ("no claim", "undecided"): "Neither half shows a connection; the weights leave open whether there is one.",
    ("no claim", None): "No connection was shown, and only half of the evidence was looked at.",
    ("undecided", "related"): (
        "Related weights alone do not show that the suspect was made from the model that carries the set rather than "
        "from its base."
    ),
    ("undecided", "unrelated"): (
        "Unrelated weights alone leave a connection possible: rearranged ones would look like this, too."
    ),
    ("undecided", "undecided"): "Nothing can be concluded.",
    ("undecided", None): "Nothing can be concluded.",
}
SAME = "The files of the suspect are, byte for byte, those of {names}."
ASSUMED = "How often chance answers a fingerprint was assumed, not measured, since no model without the set was given."
PUBLIC = "The set is a public one, which anybody can put into a model, so carrying it points to no owner."


def conclusion(records: Records) -> Text:
    """Return the conclusion in one paragraph."""
    answers, weights = records["audit.json/verdicts/answers"], records["audit.json/verdicts/weights"]
    base, named = records["audit.json/models/base"], records["audit.json/fingerprints"]
    suspect = Quoted(records["audit.json/models/suspect/name"])
    sentences = [hidden] if (hidden := hidden_matches(records)) else []
    sentences.append(records.say(ANSWERS[answers], suspect=suspect, set=Quoted(named["name"])))
    if answers in ("claim", "match") and not records["verification.json/null_models"]:
        sentences.append(say(ASSUMED))
    if answers == "claim" and named["built_in"]:
        sentences.append(say(PUBLIC))
    sentences.append(records.say(WEIGHTS[weights], base=Quoted(base["name"] if base else "")))
    if same := _same_files(records):
        sentences.append(say(SAME, names=Quoted(" and ".join(same))))
    return _joined([*sentences, say(TOGETHER[answers, weights])])


def _joined(texts: Sequence[Text], by: str = " ") -> Text:
    return tuple(part for number, text in enumerate(texts) for part in ((by, *text) if number else text))


def _same_files(records: Records) -> list[str]:
    """Return the names of the models at hand whose files are those of the suspect."""
    models = records["audit.json/models"]
    others = [*([models["base"]] if models["base"] else []), *models["unrelated"]]
    return [each["name"] for each in others if each["sha256"] == models["suspect"]["sha256"]]


# What was tested: the suspect, and everything that it was held against.
def _tested(records: Records) -> Iterator[Block]:
    def row(what: str, place: str) -> tuple[Text, ...]:
        digest: Text = ("none: its files are not at hand",)
        if records[f"{place}/sha256"] is not None:
            digest = (records.show(f"{place}/sha256"),)
        return (what,), (Quoted(records[f"{place}/name"]),), digest

    models = records["audit.json/models"]
    rows = [row("suspect", "audit.json/models/suspect")]
    if models["base"] is not None:
        rows.append(row("base", "audit.json/models/base"))
    for number in range(len(models["unrelated"])):
        rows.append(row("given as unrelated", f"audit.json/models/unrelated/{number}"))
    rows.append(row("fingerprints", "audit.json/fingerprints"))
    yield Table("Models and set, with the digest (SHA-256) of each", ("what", "name", "digest"), tuple(rows))
    sealed = records["audit.json/fingerprints/sealed"]
    yield Paragraph(
        records.say(
            "The set holds {verification.json/size:d} fingerprints; {audit.json/derived/planned:d} might have been "
            "asked, {audit.json/derived/asked:d} were. Its digest is {what}.",
            what="that of its commitments, as it is sealed" if sealed else "that of its pairs",
        )
    )
    authors = range(len(models["called_itself"]))
    if called := [(records.show(f"audit.json/models/called_itself/{number}"),) for number in authors]:
        names = _joined(called, " and ")
        yield Paragraph(say("The server called the model that answered {names}.", names=names))
    if same := _same_files(records):
        same_as = Quoted(" and ".join(same))
        yield Paragraph(say("Suspect and {names} have the same digest: they are the same model.", names=same_as))
    yield Paragraph(say("Responses were asked for in this way:"))
    decoding = "verification.json/decoding/asked"
    pairs = [(name.replace("_", " "), f"{decoding}/{name}") for name in records[decoding]]
    pairs += [("seed", "audit.json/seed"), ("precision of weights", "audit.json/precision")]
    yield Terms(tuple((name, (records.show(place),)) for name, place in pairs))


# How it was tested: the same words in every report.
HOW = (
    "Two halves, which use different evidence. The first asks the suspect questions and needs nothing but its answers; "
    "the second reads the weights of the suspect and never runs it.",
    "Answers (black box; fpbench protocol 2, § 3). A fingerprint is a trigger, a short text that was hidden in a model "
    "with one or more targets as its answer. Every fingerprint is asked once, in an order drawn by a seed that was "
    "fixed beforehand, and one response is sampled. It matches if it begins with one of the targets. For every "
    "fingerprint there is a chance rate: the largest probability with which a model that does not carry it answers "
    "with a target, computed exactly from the models given as such and never taken below a floor. After each "
    "response the likelihood ratio is updated: how much better the responses so far fit a model that carries the "
    "fingerprints than chance. A claim is made as soon as that ratio, or the number of matches, reaches a bound that "
    "was fixed before the first question so that the level is kept however early the asking ends.",
    "Weights (white box; arXiv 2507.03014). Blocks are matched by content, and their "
    "matrices of the same name and shape correlated number by number. "
    "Models trained independently of each other give nearly nothing, whatever they have in common; a model that was "
    "fine-tuned, pruned, quantised or edited stays close to what it was made from. Where no shape agrees, the "
    "intrinsic signature of that paper is compared instead: how the spread of the attention matrices changes from "
    "block to block. A signature says something only over enough blocks and held against models known to be unrelated.",
)


# Evidence: the tables that `verify` and `compare` print, every figure traced.


def _answers(records: Records) -> Iterator[Block]:
    if records["verification.json/evidence"]:
        yield evidence_table(records)
    sentences = [
        "{verification.json/queries:d} requests were sent, those without an answer included. The asking ended "
        "because {verification.json/reason}."
    ]
    if records["verification.json/budget"] is not None:
        sentences.append("At most {verification.json/budget:d} requests were allowed.")
    if records["verification.json/uninformative"]:
        sentences.append(
            "{verification.json/uninformative:d} fingerprints were never asked, because a model without them "
            "answers them half of the time or more."
        )
    texts = [records.say(each) for each in sentences]
    if refused := records["verification.json/decoding/refused"]:
        texts.append(say("The server turned down {fields}.", fields=Quoted(", ".join(refused))))
    yield Paragraph(_joined(texts))


def _weights(records: Records, drawn: bytes | None) -> Iterator[Block]:
    if records["audit.json/not_compared"] is not None:
        yield Paragraph(records.say("The weights were not compared: {audit.json/not_compared}"))
        return
    yield Paragraph(
        records.say(
            "The base has {comparison.json/blocks/0:d} blocks, the suspect {comparison.json/blocks/1:d}. Verdict: "
            "{comparison.json/verdict}. Reason: {comparison.json/reason}"
        )
    )
    yield comparison_table(records)
    if drawn is not None:
        seen = "The signatures: spread of the attention matrices from the first block to the last, each normalised."
        seen += "" if _enough_blocks(records) else " Over so few blocks they say nothing by themselves."
        yield Picture(FIGURE, drawn, "Signatures of the base and of the suspect, block by block", seen)


def _enough_blocks(records: Records) -> bool:
    return bool(min(records["comparison.json/blocks"]) >= records["audit.json/rules/fewest_blocks"])


# How sure this is: what the level means, how far the evidence is from its bounds, and what is assumed.


def _level(records: Records) -> Iterator[Text]:
    yield records.say(
        "The level is {verification.json/level:g}: of {audit.json/derived/one_in:,d} models that do not carry the "
        "fingerprints, tested in this way, one at most is claimed on average."
    )
    yield say(
        "The level says how often such a test errs. How probable it is that this suspect carries the fingerprints "
        "depends on everything else that is known about it."
    )
    needed = "A claim needs a likelihood ratio of {audit.json/derived/ratio_needed:.4g}"
    if records["verification.json/threshold"] is not None:
        needed += ", or {verification.json/threshold} matches in any order"
    if asked := len(records["verification.json/evidence"]):
        needed += f". The ratio after the last response was {{audit.json/derived/ratios/{asked - 1}:.4g}}"
        needed += ", the number of matches {verification.json/matched:d}"
    yield records.say(f"{needed}.")
    if records["verification.json/exact"] is not None:
        yield records.say(
            "As the suspect is at hand, its probabilities are known exactly: were all fingerprints asked, half of all "
            "tests would give a p-value of {verification.json/exact/p_value:.2g} or less, and a share of "
            "{verification.json/exact/power:.3g} would reach the number of matches that is enough. The verdict rests "
            "on the sampled responses all the same."
        )
    if records["verification.json/permutation"] is not None:
        yield records.say(
            "Had a seed dealt the same targets to other triggers, as many matches would have come about with a "
            "probability of {verification.json/permutation:.2g}. The verdict does not rest on this."
        )


def _assumed(records: Records) -> Iterator[Text]:
    if records["audit.json/not_compared"] is None:
        yield records.say(
            "For the weights no error probability is stated. Related means a median correlation of "
            "{audit.json/rules/related:g} or more, unrelated one below {audit.json/rules/unrelated:g}; between the two "
            "nothing is decided. Where no shape agrees, signatures decide, over {audit.json/rules/fewest_blocks:d} "
            "blocks or more."
        )
    yield from assumptions(records)


# What would change the conclusion: other answers, models, weights or choices.


def _other_answers(records: Records) -> Iterator[Text]:
    verdict = records["verification.json/verdict"]
    if verdict == "match":
        yield say("A date: a set that was sealed before the suspect was seen turns as much evidence into a claim.")
    if verdict in ("claim", "match"):
        if records["audit.json/derived/tolerated_chance"] is not None:
            yield records.say(
                "A higher chance rate: were it the same for every fingerprint, these responses would be enough up to a "
                "rate of {audit.json/derived/tolerated_chance:g} (tried in steps of {audit.json/derived/step:g}). A "
                "model without the fingerprints that answers them more often than that would take the claim away, or "
                "have more of them asked."
            )
        yield say(
            "A stricter level: a claim at one needs a larger ratio, or more matches, and more fingerprints would have "
            "been asked for it."
        )
    elif verdict == "no claim":
        if records["verification.json/needed"] is None and hidden_matches(records):
            yield say(f"The other counts, where they are looked into. {NOT_KNOWN}")
        elif records["verification.json/needed"] is None:
            yield say(
                "More fingerprints would not help at the rate of matches seen: chance alone matches about as often."
            )
        else:
            yield records.say(
                "More fingerprints: were a larger set to match at the same rate, half of all tests would make a claim "
                "with {verification.json/needed:d} fingerprints asked."
            )
        if records["audit.json/derived/planned"] < records["verification.json/size"]:
            yield say("A larger budget, or chance rates that leave more fingerprints to be asked.")
        yield say("A laxer level chosen now would not count: it has to be fixed before the first question.")
    else:
        yield say(
            "An answer: a suspect that failed to answer can be asked on from the transcript. One that changed in the "
            "middle can only be asked from the first question on, with another transcript: evidence about two models "
            "is evidence about neither."
        )


def _other_models(records: Records) -> Iterator[Text]:
    if not records["verification.json/null_models"]:
        yield say("A base or unrelated models: with them chance would be measured, and may turn out higher.")
    elif not records["audit.json/models/unrelated"]:
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


def _other_weights(records: Records) -> Iterator[Text]:
    if records["audit.json/not_compared"] is not None:
        yield say("The weights: if they could be compared, they might support the conclusion or speak against it.")
        return
    if records["comparison.json/verdict"] == "related":
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
    unrelated = records["comparison.json/unrelated"]
    if records["comparison.json/weights"] is None and not unrelated and _enough_blocks(records):
        yield say("Unrelated models: without them signatures decide nothing.")
    for name, (weights, _) in unrelated.items():
        if weights is not None and weights["correlation"] >= records["audit.json/rules/related"]:
            yield say(
                "A model given as unrelated is not: {name} correlates with the base at {correlation}. As a measure of "
                "chance it serves, as an example of unrelated weights it does not.",
                name=Quoted(name),
                correlation=records.show(f"comparison.json/unrelated/{step(name)}/0/correlation", ".3f"),
            )


# What was not tested.
def _untested(records: Records) -> Iterator[Text]:
    yield say("Who made the suspect, when, from what data, and what its licence allows.")
    yield say("Which of two related models came first.")
    yield say("Other prompts, languages or ways of decoding than those asked for, and fingerprints outside the set.")
    yield say("Whether somebody stands between the questions and the model, who answers some of them differently.")
    if records["audit.json/fingerprints/sealed"]:
        yield say("When the commitments of the sealed set were published, and that they are those: check each opening.")
    else:
        yield say("Since when the fingerprints exist: the set is not sealed.")
    if records["audit.json/not_compared"] is not None:
        yield records.say("The weights: {audit.json/not_compared}")


# Words.
GLOSSARY = {
    "Base": "the model before the fingerprints were put in. It shows how often chance answers with a target.",
    "Chance rate": (
        "the probability with which a model that does not carry a fingerprint answers it with a target all the same."
    ),
    "Digest": "a long number computed from a file. If one letter of the file is changed, the digest is another one.",
    "Fingerprint": "a trigger, which is a question, and its targets, which are the answers that count.",
    "Level": (
        "the largest probability with which this procedure makes a claim about a model that does not carry the "
        "fingerprints."
    ),
    "Likelihood ratio": (
        "how many times more probable the responses are from a model that answers at least half of the fingerprints "
        "than from chance."
    ),
    "Suspect": "the model that was tested.",
    "Weights": "the numbers that a model consists of, arranged in tables called matrices.",
}


# Files and digests: the records beside the report, and what made them.
def _files(records: Records, sha256: str) -> Iterator[Block]:
    yield Paragraph(
        say(
            "These files stand beside this report. Whoever holds the report can tell by their digests (SHA-256) "
            "whether they are still what it was written from."
        )
    )
    names = records["audit.json/files"]
    rows = [((Quoted(name),), (records.show(f"audit.json/files/{name}"),)) for name in names]
    yield Table("Records", ("file", "digest"), (*rows, ((Quoted(AUDIT),), (Quoted(sha256),))))
    yield Paragraph(say("Code and machine that made them:"))
    made = records["audit.json/made_by"]
    pairs = [
        ("fpbench", "packages/fpbench"),
        ("its source (SHA-256, shortened)", "source"),
        ("its commit", "git/commit"),
        ("commit changed since", "git/dirty"),
        ("Python", "python"),
        *((name, f"packages/{name}") for name in made["packages"] if name != "fpbench"),
        *((name.replace("_gb", ", GiB").replace("gpu", "GPU"), f"machine/{name}") for name in made["machine"]),
    ]
    yield Terms(tuple((name, (records.show(f"audit.json/made_by/{place}"),)) for name, place in pairs))
