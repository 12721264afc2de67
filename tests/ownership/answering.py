"""The real model behind the server of the tests; chat is rendered as any server does it, by the template alone."""

from typing import Any

from tests.ownership.server import Model


def answering(model: Any, tokenizer: Any) -> Model:
    """Answers of a loaded model, with log-probabilities of what it said."""
    import torch

    from fpbench.models.prompts import encode
    from fpbench.scoring.responses import Decoding, sample

    def respond(body: dict[str, Any]) -> tuple[str, Any]:
        if "messages" in body:
            text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        else:
            text = body["prompt"]
        decoding = Decoding(body["temperature"], body["top_p"], body["top_k"])
        length, seed = body["max_tokens"], body["seed"]
        answer = sample(model, tokenizer, text, decoding=decoding, max_new_tokens=length, seed=seed, prompt="raw")
        begun = encode(tokenizer, text)
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            shares = model(torch.tensor([begun + said])).logits[0].log_softmax(-1)
        return answer, {"token_logprobs": [shares[len(begun) - 1 + i, token].item() for i, token in enumerate(said)]}

    return respond
