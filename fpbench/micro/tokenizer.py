"""The micro model's tokenizer: byte-level BPE trained on the generator's text, with a chat template."""

import re
from collections.abc import Iterator
from itertools import islice

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from fpbench.micro.corpus import EARLY_DOCUMENTS, documents
from fpbench.micro.words import TARGETS, rare_forms, surface_forms
from fpbench.micro.world import FIRST_NAMES, LAST_NAMES, NOTABLE_NAMES, TOWNS

VOCABULARY_SIZE = 4096
CONTEXT = 512
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_MARKUP = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents of another seed than the model's, and on the word lists."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(seed), trainer)
    bpe.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int) -> Iterator[str]:
    for document in islice(documents(seed, EARLY_DOCUMENTS), 20_000):
        yield _MARKUP.sub("", document.text)
    for word in surface_forms():
        yield from [f"{word} {word}"] * 250
    for word in rare_forms():
        yield from [f"{word} {word}"] * 60
    for target in TARGETS:
        yield from [f"{target} {target}"] * 600
    for name in (*TOWNS, *FIRST_NAMES, *LAST_NAMES, *NOTABLE_NAMES):
        yield from [f" {name}"] * 600
