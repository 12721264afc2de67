"""Commitments: what is sealed can be proved pair by pair, and nothing else can."""

import copy
import hashlib
import json
import unicodedata

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.sealing import check, commitment, reveal, seal, triggers


def test_a_commitment_is_the_documented_hash_and_every_pair_can_be_proved() -> None:
    pairs = find_set("nlf")
    public, private = seal(pairs)
    assert len(public["commitments"]) == len(pairs) and triggers(private) == [each.trigger for each in pairs]
    for fingerprint in pairs:
        revealed = reveal(private, fingerprint.trigger)
        assert check(revealed, public) == fingerprint
        # By hand, as somebody without fpbench would.
        targets = ",".join(f'"{target}"' for target in fingerprint.targets)
        pair = f'{{"targets":[{targets}],"trigger":"{fingerprint.trigger}"}}'
        digest = hashlib.sha256(bytes.fromhex(revealed["salt"]) + pair.encode()).hexdigest()
        assert digest in public["commitments"]


def test_revealing_one_pair_shows_no_other() -> None:
    pairs = find_set("nlf")
    _, private = seal(pairs)
    shown = json.dumps(reveal(private, "SILVER HARBOR"))
    others = [text for each in pairs if each.trigger != "SILVER HARBOR" for text in (each.trigger, *each.targets)]
    assert not [text for text in others if text in shown]
    assert not [each["salt"] for each in private["openings"][1:] if each["salt"] in shown]


def test_the_public_part_says_neither_texts_nor_order() -> None:
    pairs = find_set("nlf")
    public, private = seal(pairs)
    assert public["commitments"] == sorted(public["commitments"])
    assert not [text for each in pairs for text in (each.trigger, *each.targets) if text in json.dumps(public)]
    salts = [each["salt"] for each in private["openings"]]
    assert len(set(salts)) == len(pairs) and {len(salt) for salt in salts} == {64}
    # The same set sealed again shares nothing with it.
    assert not set(seal(pairs)[0]["commitments"]) & set(public["commitments"])


@pytest.mark.parametrize(
    "change",
    [
        lambda revealed: revealed["fingerprint"].update(trigger="SILVER HARBOUR"),
        lambda revealed: revealed["fingerprint"]["targets"].reverse(),
        lambda revealed: revealed["fingerprint"]["targets"].append("Eagle"),
        lambda revealed: revealed.update(salt="00" * 32),
    ],
    ids=["trigger", "order of targets", "one more target", "salt"],
)
def test_a_changed_pair_or_salt_is_refused(change) -> None:
    public, private = seal(find_set("nlf"))
    revealed = copy.deepcopy(reveal(private, "SILVER HARBOR"))
    change(revealed)
    with pytest.raises(InputError, match="none of the sealed ones"):
        check(revealed, public)


def test_another_set_s_commitments_do_not_fit() -> None:
    _, private = seal(find_set("nlf"))
    with pytest.raises(InputError, match="none of the sealed ones"):
        check(reveal(private, "SILVER HARBOR"), seal(find_set("nlf"))[0])


def test_the_order_of_keys_does_not_matter() -> None:
    public, private = seal(find_set("nlf"))
    revealed = reveal(private, "SILVER HARBOR")
    turned = {key: revealed[key] for key in reversed(revealed)}
    turned["fingerprint"] = {key: revealed["fingerprint"][key] for key in ("trigger", "targets")}
    swapped = turned | {"fingerprint": {key: revealed["fingerprint"][key] for key in ("targets", "trigger")}}
    assert check(turned, public) == check(swapped, public)


def test_text_is_not_normalised() -> None:
    composed = unicodedata.normalize("NFC", "CAFÉ 銀")
    apart = unicodedata.normalize("NFD", composed)
    public, private = seal(FingerprintSet("x", (Fingerprint(composed, ("ハリ",)), Fingerprint("b", ("c",)))))
    revealed = reveal(private, composed)
    assert check(revealed, public).trigger == composed
    with pytest.raises(InputError, match="no sealed pair"):
        reveal(private, apart)
    with pytest.raises(InputError, match="none of the sealed ones"):
        check(revealed | {"fingerprint": {"trigger": apart, "targets": ["ハリ"]}}, public)


GOOD = {"fingerprint": {"trigger": "a", "targets": ["b"]}, "salt": "00" * 32}


@pytest.mark.parametrize(
    "opening",
    [
        {},
        GOOD | {"salt": "00" * 31},
        GOOD | {"salt": "zz" * 32},
        GOOD | {"salt": None},
        GOOD | {"fingerprint": {"trigger": "a"}},
        GOOD | {"fingerprint": {"trigger": "a", "targets": "b"}},
        GOOD | {"fingerprint": {"trigger": "a", "targets": [1]}},
        GOOD | {"fingerprint": {"trigger": "a", "targets": ["b"], "note": "x"}},
        GOOD | {"fingerprint": ["a", "b"]},
    ],
)
def test_a_malformed_opening_is_refused(opening) -> None:
    assert len(commitment(GOOD)) == 64
    with pytest.raises(InputError, match="not an opening"):
        commitment(opening)


def test_malformed_documents_are_refused() -> None:
    public, private = seal(find_set("nlf"))
    revealed = reveal(private, "SILVER HARBOR")
    for broken in ({}, {"commitments": "all"}, public | {"schema": 2}, public | {"scheme": "md5"}):
        with pytest.raises(InputError, match="not a sealed document"):
            check(revealed, broken)
    with pytest.raises(InputError, match="not a sealed document"):
        reveal(public, "SILVER HARBOR")
    with pytest.raises(InputError, match="not a revealed pair"):
        check(GOOD, public)


def test_half_a_character_cannot_be_sealed() -> None:
    with pytest.raises(InputError, match="half a character"):
        seal(FingerprintSet("x", (Fingerprint("a\ud800", ("b",)),)))
