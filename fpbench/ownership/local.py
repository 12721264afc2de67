"""A suspect whose weights are here, asked the way a server is."""

from dataclasses import asdict
from typing import Any

from fpbench.models.decoding import Decoding
from fpbench.models.sampling import sample
from fpbench.ownership.interview import Sampling, Told
from fpbench.ownership.transcript import Answer


class LocalSuspect:
    """A loaded model."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        """Take a causal language model in eval mode, its tokenizer, and how responses are sampled."""
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling

    def respond(self, trigger: str, seed: int, told: Told) -> Answer:
        """Sample one response to a trigger.

        Raises:
            InputError: if the trigger leaves the model no room.
            CellError: if logits are not finite.
        """
        how = self._sampling
        decoding = Decoding(how.temperature, how.top_p, how.top_k)
        told.asking()
        text = sample(
            self._model,
            self._tokenizer,
            trigger,
            decoding=decoding,
            max_new_tokens=how.max_tokens,
            seed=seed,
            prompt=how.prompt,
        )
        return Answer(text, None, seed, asdict(decoding) | {"seed": seed})
