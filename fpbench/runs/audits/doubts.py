"""How sure a conclusion is, what would change it, and what it says nothing about."""

from collections.abc import Iterator

from fpbench.board.document import Bullets, Quoted, Section, Text, say
from fpbench.runs.audits.records import AUDIT, COMPARISON, VERIFICATION, Records, escaped

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
