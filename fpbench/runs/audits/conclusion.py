"""What the two halves say together: never more than each of them supports."""

from collections.abc import Mapping
from typing import Any

from fpbench.board.document import Quoted, Text, say
from fpbench.runs.audits.records import AUDIT, VERIFICATION, Records

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
