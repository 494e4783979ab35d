"""GGUF architectures against transformers and llama.cpp: `python -m tests.models.gguf [--peer PYTHON] [CASE ...]`.

Files of tiny random models, written as converters do, are read by this product and by llama.cpp; both must say what
transformers says of the model that the file was made from. PYTHON: an interpreter that has `xllamacpp` (llama.cpp
prebuilt, on PyPI) and numpy. Without one only the first half is done, as in `test_gguf_families.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from tests.swarm.model.gguf_cases import CASES
from tests.swarm.model.gguf_files import settled, write_gguf
from tests.swarm.model.tiny import VOCAB, logits_of, plain, random_model

TEXT = [5, 17, 3, 88, 41, 0, 9, 60, 11, 12, 54, 33, 2, 7]
TOKENS = {
    "vocab_size": VOCAB,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [f"<t{i}>" for i in range(VOCAB)],
    "tokenizer.ggml.token_type": [1] * VOCAB,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
"""A vocabulary, without which llama.cpp loads no model."""

PEER = """
import json, sys
import numpy as np
import xllamacpp as x
path, out, vocab, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(t) for t in sys.argv[4].split(",")]
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_batch, p.n_ubatch, p.n_parallel, p.warmup = path, 256, 64, 64, 1, False
p.cpuparams.n_threads = 1
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
server, rows = x.Server(p), np.full((len(text), vocab), -np.inf)
for i in range(len(text)):
    order = {"prompt": text[: i + 1], "n_predict": 1, "n_probs": vocab, "temperature": 0, "cache_prompt": False}
    answer = server.handle_completions(order)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    for found in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        rows[i, found["id"]] = found["logprob"]
np.save(out, rows)
"""


def ours(path: Path, wanted: torch.Tensor, folder: Path) -> str:
    """How far the product is from transformers' logits, whole and in two blocks."""
    checkpoint = open_model(str(path), ModelStore(folder / "store"))
    n = checkpoint.manifest.n_layers
    apart = [(logits_of(checkpoint, TEXT, cuts) - wanted).abs().max() for cuts in ((0, n), (0, n // 2, n))]
    return f"{float(max(apart)):.1e}"


def theirs(python: str, path: Path, wanted: torch.Tensor, folder: Path) -> str:
    """How far llama.cpp is from transformers' log-probabilities; its reason where it loads no such model."""
    out = folder / "peer.npy"
    text = ",".join(map(str, TEXT))
    run = subprocess.run(
        [python, "-c", PEER, str(path), str(out), str(VOCAB), text],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if run.returncode:
        said = [line for line in (run.stdout + run.stderr).splitlines() if "rror" in line]
        return said[0][-150:] if said else "failed"
    apart = np.abs(np.load(out) - torch.log_softmax(wanted.double(), -1).numpy())
    return f"{apart.max():.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models.gguf", description=__doc__)
    parser.add_argument("cases", nargs="*", help="by name (default: all)")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has xllamacpp")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases or CASES:
        architecture, config, keys = CASES[name]
        model = settled(random_model(config()))
        wanted = plain(model, TEXT)
        with tempfile.TemporaryDirectory() as place:
            path = write_gguf(Path(place) / "a.gguf", model, architecture, {**TOKENS, **keys})
            found = [ours(path, wanted, Path(place))]
            if arguments.peer:
                found.append(theirs(arguments.peer, path, wanted, Path(place)))
        print(name, architecture, *found, sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
