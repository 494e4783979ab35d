"""A vocabulary of words with marks for begin and end, as llama.cpp's own tests expect of a model."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SAID = (
    "Once upon a time there was a little girl who had a big book and she said the best thing about it was to be so "
    "happy with you and he and they but I believe the meaning of life is going to bed. What is the weather? You are a "
    "coding assistant. Write the example function, a very long joke about music and the sky. Hey! " * 4
)
CHATML = (
    "{%- if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{%- for call in message.get('tool_calls', []) %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def story_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Pieces of words with bytes for what they do not spell, `<s>` before each text; the same one every time."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    # Bytes are words of the vocabulary and no special tokens: they are trained for last of all, and so never merge.
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    core.train_from_iterator([SAID], trainer)
    plain = Tokenizer.from_str(core.to_str())
    written = json.loads(plain.to_str())
    written["added_tokens"] = []
    core = Tokenizer.from_str(json.dumps(written))
    core.add_special_tokens([AddedToken(each, special=True) for each in ("<unk>", "<s>", "</s>")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer
