"""What a report says about every audit in the same words: how it is done, and what its terms mean."""

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
