"""A vocabulary of the size of that of llama.cpp's test model (512), trained on the same kind of text: stories."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

STORIES = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her mom and dad. One
day, she saw a big red ball in the tree. "Can you help me get it?" she asked her mom. Her mom smiled and said, "Yes, I
can help you." They were very happy. Lily said thank you, and they went back home to eat some cake.
Tim was a small boy who had a toy car. He liked to make it go fast. One day, the car hit a rock and it was broken. Tim
was sad and started to cry. His friend Ben came to see him. "Do not be sad," Ben said. "We can fix it." They worked
together all day, and the car was like new again. Tim gave Ben a big hug. From that day on, they were best friends.
The bird wanted to find food for the baby birds. It looked in the garden, under the leaves, and by the water. Then it
found a big worm near the house. "This is what they will like!" the bird thought. It flew up high to the nest, and the
little birds opened their mouths. They were not hungry any more, and the sun went down. That is how it was. The end.
"""
"""Our own; none of it stands in llama.cpp's tests."""
SIZE = 512
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
    specials = ["<unk>", "<s>", "</s>", *bytes_]
    spelt = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=specials, initial_alphabet=spelt, show_progress=False)
    core.train_from_iterator([STORIES.replace("\n", " ")], trainer)
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
