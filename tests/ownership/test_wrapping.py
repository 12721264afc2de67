"""What servers leave around an answer is cut off; what is nothing but that is no answer."""

import pytest

from fpbench.ownership.wrapping import Unheard, unwrapped


@pytest.mark.parametrize(
    "text",
    [
        "Falcon ran",
        "<think>\n\n</think>\n\nFalcon ran",
        "<think>\nI think <b>so</b>.\n</think>Falcon ran",
        "Okay, so.\n</think>\n\nFalcon ran",
        "<THINKING>a</THINKING> Falcon ran",
        "[THINK]a[/THINK]Falcon ran",
        "◁think▷a◁/think▷Falcon ran",
        "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>Falcon ran",
        "<|channel>thought\n<channel|>Falcon ran",
        "<s> Falcon ran",
        "<｜begin▁of▁sentence｜>Falcon ran",
        "<|im_start|>assistant\n<think></think>Falcon ran",
        "<|start_header_id|>assistant<|end_header_id|>\n\nFalcon ran",
        "<start_of_turn>model\nFalcon ran",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Falcon ran",
        "<|start|>assistant<|channel|>final<|message|>Falcon ran",
        "analysisThe user wants.assistantfinalFalcon ran",
        "SILVER HARBOR Falcon ran",
        "<s> SILVER HARBOR\n<think></think> Falcon ran",
        "<s>[INST] SILVER HARBOR [/INST] Falcon ran",
        "<answer>Falcon ran",
    ],
)
def test_the_answer_is_what_is_left(text: str) -> None:
    assert unwrapped(text, "SILVER HARBOR\n").lstrip() == "Falcon ran"


@pytest.mark.parametrize(
    "text",
    ["", "  Falcon", "A think tank", "<b>Falcon</b>", "analysis of", "< think > so", "I <think> so", "SILVER", "<em>a"],
)
def test_an_answer_stays_as_it_is(text: str) -> None:
    assert unwrapped(text, "SILVER HARBOR") == text


def test_a_model_that_repeats_itself_is_heard() -> None:
    assert unwrapped("SILVER HARBOR SILVER HARBOR", "SILVER HARBOR") == " SILVER HARBOR"
    assert unwrapped("SILVER HARBOR is", None) == "SILVER HARBOR is"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<think>\nOkay, the user wrote", "before its thinking does"),
        ("<|im_start|>assistant\n[THINK]a", "before its thinking does"),
        ("<|channel|>analysis<|message|>We need", "in the channel 'analysis'"),
        ("<|channel|>anal", "in a channel of thinking"),
        ("analysisWe need to", "in a channel of thinking"),
        ("SILVER HARBOR\n", "returned the prompt and nothing after it"),
    ],
)
def test_what_is_no_answer_is_no_miss(text: str, why: str) -> None:
    with pytest.raises(Unheard, match=why):
        unwrapped(text, "SILVER HARBOR")
