"""How often the same request gives another answer, and how often an honest stage is called wrong. Both must be never.

python -m tests.bench.exact_runs [--texts 500] [--audits 1000] [--real 60] [--tokens 24]

Texts: each request is run plain, as a chain, as a tree and as a stream, all at once beside all others of its
temperature (a busy ring), and once more from a prefix that stages hold; over rings of 1, 2 and 3 stages (SmolLM2:
1 and 3); at five temperatures (SmolLM2: two), with two kinds of limits; in bfloat16, in float32 and (SmolLM2, which is
stored as Q4_1) with weights as stored. One request has one answer: token ids and log-probabilities, to the last bit.
`--texts` counts runs of a random model of 8 layers, `--real` those of SmolLM2-135M.

Audits: an audit is one stage of one run, of which every frame is opened and every row recomputed by the kernels that
the stage has, and compared bit for bit. It is counted as wrong when any row differs.

Prints one JSON object; exits with 1 when anything differed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from receipts.check.verify import Options, verify
from receipts.format.document import secrets_untrusted
from swarm.model.block import Block, load_block
from swarm.model.exact import why_not
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.own_kernels import KernelsHere
from swarm.model.sampler import Sampling
from swarm.recheck.auditor import RingAuditor
from swarm.run.api import RunRequest
from tests.bench.audit_power import random_model
from tests.ring.signed import Asked, signed_ring
from tests.ring.told import Told, told

MODES = ("plain", "chain", "tree", "stream")
TEMPERATURES = (0.0, 0.3, 0.7, 1.0, 1.5)
STAGES = (1, 2, 3)
KINDS = {"bfloat16": (torch.bfloat16, "expanded"), "float32": (torch.float32, "expanded")}
STORED = {"Q4_1": (torch.bfloat16, "stored")}
RUNS_OF_ONE = len(MODES) + 1
CPU = torch.device("cpu")


def spans_of(layers: int, stages: int) -> list[tuple[int, int]]:
    ends = [round(layers * i / stages) for i in range(stages + 1)]
    return list(zip(ends, ends[1:], strict=False))


def requests(prompt: tuple[int, ...], temperature: float, seed: int, tokens: int) -> list[RunRequest]:
    limits: dict[str, Any] = {"top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1} if seed % 2 else {"min_p": 0.02}
    sampling = Sampling(temperature=temperature, seed=seed, logprobs=3, **limits)
    return [RunRequest(prompt, tokens, sampling, speculation=mode, draft="suffix") for mode in MODES]  # type: ignore[arg-type]


async def texts(
    checkpoint: Checkpoint,
    kinds: dict[str, Any],
    count: int,
    tokens: int,
    folder: Path,
    counts: Sequence[int] = STAGES,
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[str, dict[str, int]]:
    """By kind: runs, requests, and requests that had more than one answer."""
    per = len(kinds) * len(counts) * len(temperatures) * RUNS_OF_ONE
    prompts = max(1, -(-count // per))
    answers: dict[tuple[str, float, int], set[Told]] = defaultdict(set)
    runs: dict[str, int] = defaultdict(int)
    for kind, (dtype, weights) in kinds.items():
        for stages in counts:
            spans = spans_of(checkpoint.manifest.n_layers, stages)
            blocks: dict[int, Block] = {
                i: load_block(checkpoint, *span, CPU, dtype, weights=weights) for i, span in enumerate(spans)
            }
            for block in blocks.values():
                assert why_not(block) is None, f"{kind}: {why_not(block)}"
            where = folder / f"{kind}-{stages}"
            async with signed_ring(checkpoint, spans, where, dtype=dtype, blocks=blocks, keep_s=60.0) as ring:
                for temperature in temperatures:
                    source = random.Random(int(10 * temperature))
                    words = min(300, checkpoint.manifest.vocab_size)
                    lines = [[source.randrange(3, words) for _ in range(source.randint(4, 40))] for _ in range(prompts)]
                    asked = [requests(tuple(line), temperature, i, tokens) for i, line in enumerate(lines)]
                    first = await asyncio.gather(*(told(ring, one) for group in asked for one in group))
                    for number, group in enumerate(asked):
                        again = await told(ring, group[(number + stages) % len(group)])
                        mine = first[number * len(group) : (number + 1) * len(group)]
                        answers[kind, temperature, number] |= {*mine, again}
                        runs[kind] += len(mine) + 1
            print(f"{kind}, {stages} stages: {runs[kind]} runs", file=sys.stderr, flush=True)
    return {
        kind: {
            "runs": runs[kind],
            "requests": sum(key[0] == kind for key in answers),
            "requests with more than one answer": sum(key[0] == kind and len(a) > 1 for key, a in answers.items()),
        }
        for kind in kinds
    }


async def audits(
    checkpoint: Checkpoint,
    count: int,
    tokens: int,
    folder: Path,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32),
) -> dict[str, int]:
    """Honest stages audited by equality, as many in each dtype."""
    kernels = KernelsHere(checkpoint.manifest, checkpoint.config)
    known = kernels.all()
    found = {"audits": 0, "openings": 0, "wrong": 0}
    number = 0
    for part, dtype in enumerate(dtypes, 1):
        digest = next(d for d in known if (own := kernels.find(d)) and own.dtype == dtype and own.weights == "expanded")
        spans = spans_of(checkpoint.manifest.n_layers, 3)
        async with signed_ring(checkpoint, spans, folder / str(dtype), dtype=dtype) as ring:
            signed = {node.identity.id.hex(): digest for node in ring.nodes}
            for node in ring.nodes:
                assert node.server is not None and node.server.hosted is not None
                node.server._stage.hosted = replace(node.server.hosted, fingerprint=digest)
            while found["audits"] < count * part // len(dtypes):
                source = random.Random(number)
                prompt = tuple(source.randrange(300) for _ in range(source.randint(4, 60)))
                path = folder / f"{number}.json"
                request = RunRequest(prompt, tokens, speculation=MODES[number % 4], draft="suffix")  # type: ignore[arg-type]
                await ring.generate(request, path)
                auditor = RingAuditor(
                    checkpoint, Asked(ring, asyncio.get_running_loop()), fingerprints=signed, kernels=kernels
                )
                secrets = secrets_untrusted(path.with_suffix(".secrets.json").read_bytes())
                options = Options(auditor=auditor, audit_rows=4096, secrets=secrets)
                verdict = await asyncio.to_thread(verify, path.read_bytes(), options)
                wrong = verdict.met != {"audit", "exact"}
                claims = [
                    claim.text for claim in verdict.claims if claim.subject == "audit" and "EXACT: " in claim.text
                ]
                found["audits"] += len(spans)
                found["openings"] += sum(int(text.split("EXACT: ")[1].split()[0]) for text in claims)
                found["wrong"] += len(spans) - len(claims) if not wrong else len(spans)
                number += 1
                if number % 20 == 0:
                    print(found, file=sys.stderr, flush=True)
    return found


async def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    begun = time.monotonic()
    tiny = random_model(folder)
    found: dict[str, Any] = {}
    if asked.texts:
        found["texts"] = await texts(tiny, KINDS, asked.texts, asked.tokens, folder / "texts")
    if asked.real:
        real = ModelStore(folder / "real").open(DEFAULT_MODEL, None)
        kinds = {**STORED, **KINDS}
        found["SmolLM2-135M"] = await texts(
            real, kinds, asked.real, min(12, asked.tokens), folder / "smollm2", (1, 3), (0.0, 1.0)
        )
    if asked.audits:
        found["audits"] = await audits(tiny, asked.audits, asked.tokens, folder / "audits")
    return {**found, "minutes": round((time.monotonic() - begun) / 60, 1)}


def differed(found: dict[str, Any]) -> bool:
    """Whether anything that must be equal was not."""
    kinds = [kind for name in ("texts", "SmolLM2-135M") for kind in found.get(name, {}).values()]
    return (
        any(kind["requests with more than one answer"] for kind in kinds) or found.get("audits", {}).get("wrong", 0) > 0
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--audits", type=int, default=1000)
    parser.add_argument("--real", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=24)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(asked, Path(folder)))
    print(json.dumps(found, indent=1))
    return int(differed(found))


if __name__ == "__main__":
    sys.exit(main())
