"""What audits catch: stages that lie in all of their frames or in some, held to account with ever more opened frames.

    python -m tests.bench.audit_power [--lies int8 int4 ...] [--shares 1.0 0.05] [--runs 4] [--tokens 48] [--model REF]
        [--wire bfloat16] [--models FOLDER] [--opened 1 5 20 90]

Rings of three stages in one process, bfloat16, real sockets and receipts; one stage of each ring lies. Without --model
they compute a random model of 8 layers. Prints one JSON object: caught audits of all, by lie, share of frames, stage
and number of frames opened at that stage. "honest" is no lie: it counts false alarms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from receipts.check.verify import Options, verify
from receipts.format.errors import Refusal
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.recheck.limits import LimitOf, limit_of, load_limits
from swarm.run.api import RunRequest
from tests.ring.signed import LIES, SignedRing, signed_ring, skipping

OPENED = (1, 5, 20, 90)


def halved(block: Block) -> None:
    """A smaller model: half of the layers, rounded up, are left out."""
    skipping((block.last - block.first + 1) // 2)(block)


ALL_LIES = {**LIES, "half of the layers": halved}


class Sometimes(Block):
    """A stage that lies in a share of its frames, over one and the same KV."""

    def __init__(self, honest: Block, lying: Block, share: float, chooser: random.Random) -> None:
        self.__dict__.update(honest.__dict__)
        self._two, self._share, self._chooser = (honest, lying), share, chooser

    def view(self, first: int, last: int) -> Block:
        return self

    def forward(self, *arguments: Any, **more: Any) -> list[torch.Tensor]:
        return self._two[self._chooser.random() < self._share].forward(*arguments, **more)


def random_model(folder: Path) -> Checkpoint:
    """A Llama of 8 layers, wide enough for errors of rows to be as even as real models' are."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=311, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
        initializer_range=0.06,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return open_model(str(folder / "model"), ModelStore(folder / "models"))


async def audits(
    ring: SignedRing,
    path: Path,
    checkpoint: Checkpoint,
    stage: int,
    chooser: random.Random,
    limit: LimitOf,
    counts: Sequence[int],
) -> dict[int, bool]:
    """Whether an audit with so many frames opened at every stage caught the one that lies, or anybody."""
    found = {}
    auditor = ring.auditor(checkpoint)
    for opened in counts:
        options = Options(
            auditor=auditor,
            audit_rows=3 * opened,
            limit=limit,
            chooser=chooser,
        )
        verdict = await asyncio.to_thread(verify, path.read_bytes(), options)
        assert verdict.refusal in (None, Refusal.AUDIT), verdict.line
        found[opened] = verdict.refusal is Refusal.AUDIT
        if found[opened] and stage >= 0:
            assert ring.nodes[stage].identity.id.hex()[:8] in verdict.line, verdict.line
    return found


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store = ModelStore(arguments.models)
    checkpoint = open_model(arguments.model, store) if arguments.model else random_model(folder)
    limit = limit_of(load_limits(store.root, checkpoint.manifest.digest))
    layers, cpu = checkpoint.manifest.n_layers, torch.device("cpu")
    cuts = [0, 3 * layers // 8, 6 * layers // 8, layers]
    spans = list(zip(cuts, cuts[1:], strict=False))
    chooser = random.Random(arguments.seed)
    found: dict[str, list[bool]] = defaultdict(list)
    for lie in arguments.lies:
        for share in arguments.shares if lie != "honest" else [0.0]:
            for stage in range(3) if lie != "honest" else [-1]:
                for number in range(arguments.runs):
                    blocks = {}
                    if stage >= 0:
                        true = load_block(checkpoint, *spans[stage], cpu, torch.bfloat16)
                        false = load_block(checkpoint, *spans[stage], cpu, torch.bfloat16, blocked=False)
                        ALL_LIES[lie](false)
                        blocks = {stage: Sometimes(true, false, share, chooser)}
                    where = folder / f"{lie}-{share}-{stage}-{number}"
                    vocabulary = min(300, checkpoint.manifest.vocab_size)
                    prompt = tuple(chooser.randrange(vocabulary) for _ in range(chooser.randint(8, 40)))
                    made = signed_ring(
                        checkpoint, spans, where, dtype=torch.bfloat16, wire=arguments.wire, blocks=blocks
                    )
                    async with made as ring:
                        request = RunRequest(prompt, arguments.tokens, speculation="plain", ignore_eos=True)
                        path = Path(str((await ring.generate(request)).receipt))
                        kind = "tail" if stage == 2 else "inner" if stage >= 0 else "all"
                        seen = await audits(ring, path, checkpoint, stage, chooser, limit, arguments.opened)
                        for opened, caught in seen.items():
                            found[f"{lie} {share:g} {kind} {opened}"].append(caught)
    return {name: f"{sum(caught)} of {len(caught)}" for name, caught in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lies", nargs="+", default=["honest", *ALL_LIES], metavar="LIE")
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.05])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--model", metavar="REF")
    parser.add_argument("--models", type=Path, help="where models are kept")
    parser.add_argument("--wire", default="bfloat16")
    parser.add_argument("--opened", nargs="+", type=int, default=OPENED)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(arguments, Path(folder))), indent=1))


if __name__ == "__main__":
    main()
