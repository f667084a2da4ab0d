"""Byte-level BPE tokenizers, trained on the spot."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, START, END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SENTENCE = "Could you say something nice to them? Hi there you are! no yes green grey"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[BOS, EOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    return tokenizer.to_str()


def make_tokenizer(*, adds_bos: bool = False, **options: str) -> PreTrainedTokenizerFast:
    """Every word of `SENTENCE`, with the space before it, is one token."""
    tokenizer = Tokenizer.from_str(_trained())
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    options = {"bos_token": BOS, "eos_token": EOS} | options
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
