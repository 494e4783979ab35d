"""Rules that split words, held against llama.cpp: `python -m tests.models.gguf_words PYTHON [RULE ...]`.

PYTHON: an interpreter that has `xllamacpp`. For each rule a vocabulary is learned over whole lines, so that its merges
cross every border that a rule might draw, and put into a GGUF; texts are then split into tokens by both. Two kinds of
difference are llama.cpp's: rules with `\\p{M}` (gpt-4o, tekken, kimi-k2), whose marks its adapted expressions leave
out, and kimi-k2, whose words it does not end where a capital letter follows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from swarm.model.files.gguf_splits import rules
from tests.swarm.model.files.test_gguf_tokenizer import built, ids, keys_of
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.tiny import random_model, tiny_config

HERE = Path(__file__).parents[2]
MIXED = (
    "naïve café Привет, мир! 你好世界，我在apple工作1314151天～ こんにちは 안녕하세요 ١٢٣ "
    "don't WE'VE it's I'M 3.14 1234567 "
    "CamelCaseWord HTTPServer x_y-z  \t\t\n\n   \r\n  end ``` '''''' 😁🚀 Ⅷ ½ ² ------======= "
    "I've been 'told he's there, 'RE you sure? 'M not sure, 'D you like some tea? We'Ve a'lL"
)

PEER = """
import json, sys, urllib.request
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.warmup = sys.argv[1], 64, 1, False
server, found = x.Server(p), []
for text in json.load(open(sys.argv[2])):
    order = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + "/tokenize", order, kind)
    found.append(json.load(urllib.request.urlopen(request))["tokens"])
json.dump(found, open(sys.argv[3], "w"))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models.gguf_words", description=__doc__)
    parser.add_argument("python", help="an interpreter that has xllamacpp")
    parser.add_argument("rules", nargs="*", help="by name (default: all)")
    arguments = parser.parse_args()
    prose = (HERE / "docs" / "architecture.md").read_text() + (HERE / "swarm" / "model" / "load.py").read_text()
    texts = [prose[i : i + 600] for i in range(0, len(prose), 2500)] + [MIXED]
    learned = trained([prose[i : i + 60] for i in range(0, len(prose), 60)] + [MIXED] * 20)
    for rule in arguments.rules or rules():
        keys = keys_of(learned, pre=rule, add_bos_token=False)
        with tempfile.TemporaryDirectory() as folder:
            theirs = peer(arguments.python, keys, texts, Path(folder))
        mine = [ids(built(keys), text) for text in texts]
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        print(rule, f"{same} of {len(texts)}", sep="\t", flush=True)
    return 0


def trained(lines: list[str]) -> Tokenizer:
    """A vocabulary whose merges cross the borders of words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<s>", "</s>", "<|eot_id|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def peer(python: str, keys: dict[str, object], texts: list[str], folder: Path) -> list[list[int]]:
    """Tokens of the texts by llama.cpp."""
    config = tiny_config("llama")
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    config.vocab_size, config.num_hidden_layers = len(tokens), 1
    more = {"vocab_size": len(tokens), "rope.dimension_count": 12}
    path = write_gguf(folder / "a.gguf", random_model(config), "llama", {**keys, **more})
    (folder / "texts").write_text(json.dumps(texts))
    order = [python, "-c", PEER, str(path), str(folder / "texts"), str(folder / "tokens")]
    subprocess.run(order, check=True, capture_output=True, timeout=100)
    found: list[list[int]] = json.loads((folder / "tokens").read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())
