"""Speculation in simulated time with the real target and the real drafter: what a strategy is worth, without noise.

    python -m tests.bench.sim_real [--prompts 3] [--max-tokens 96] [--modes tree stream] [--no-echo]

Every frame goes through the whole model in this process, in float32, so that texts are the same in all modes, and
the shipped drafter drafts. Only time is simulated: links, stages that share cores, draft steps, at what they were
measured to take. So two versions of a strategy can be compared on any machine, however busy it is. What it does not
know is what waits for what on a real machine: streams come out 5 to 20% better here than over real processes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from draft.asset import load_drafter
from draft.base import Drafter
from swarm.model.block import Block, Job, load_block
from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model
from swarm.model.files.store import DEFAULT_MODEL, ModelStore
from swarm.model.kvcache import KVPool, SessionKV
from swarm.run.controller import Setting
from swarm.run.speculation import PlannedFrame
from swarm.testbed.bench import load_prompts
from tests.bench.chat import asked
from tests.bench.sim_drafters import Draft
from tests.bench.sim_speculation import Outcome, Ring, Simulation

SCRATCH = {"plain": 8, "chain": 64, "tree": 128, "stream": 192}


class RealRing(Simulation):
    """A simulated ring whose tail says what the model says. `kv`: the run's session of the whole model."""

    block: Block
    kv: SessionKV

    def answers(self, frame: PlannedFrame) -> list[int]:
        """Greedy tokens for the wanted rows, computed when the frame is sent: links keep the order of frames."""
        (logits,) = self.block.forward([Job(self.kv, frame.commits, frame.rows, None)])
        return [int(token) for token in logits.argmax(-1)]


@dataclass(frozen=True)
class Bench:
    """The model, its drafter, and what times are simulated."""

    block: Block
    drafter: Drafter
    prompts: dict[str, list[list[int]]]
    ring: Ring
    draft: Draft

    def run(self, prompt: Sequence[int], setting: Setting, count: int) -> tuple[Outcome, list[int]]:
        """One run, and its tokens."""
        drafts = setting.mode != "plain"
        drafter = self.drafter if drafts else None
        run = RealRing(
            self.ring, setting, int, prompt, count, drafter, self.draft, suffix=drafts, scratch=SCRATCH[setting.mode]
        )
        run.block = self.block
        with (
            torch.inference_mode(),
            closing(KVPool(self.block, 1 << 40).open(run.layout, 0, self.block.n_layers)) as run.kv,
        ):
            return run.run(), run.spec.tokens[len(prompt) :]


def load(args: argparse.Namespace) -> Bench:
    store, device = ModelStore(args.store), torch.device("cpu")
    target, tokenizer = open_model(args.model, store), load_tokenizer(args.model, store)
    ends, own = end_tokens(target, store, args.model), args.model == DEFAULT_MODEL
    ref = args.draft_model or (None if own else DEFAULT_MODEL)
    drafter = load_drafter(ref, target, tokenizer, store, device, context=1024, ends=ends)
    assert drafter is not None, "a drafter ships with the default model"
    prompts = {
        name: asked(tokenizer, texts[: args.prompts]) for name, texts in load_prompts().items() if name in args.classes
    }
    ring = Ring((args.rtt / 2,) * 4, stage_ms=args.stage_ms, row_ms=args.row_ms, cores=args.cores)
    layers = target.manifest.n_layers
    if own:
        block = load_block(target, 0, layers, device, torch.float32)
    else:  # in float32 it would not fit beside others; its texts may differ after a near-tie
        block = load_block(target, 0, layers, device, torch.bfloat16, weights="auto")
    return Bench(block, drafter, prompts, ring, Draft(ms=args.draft_ms, leaf_ms=args.leaf_ms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=3, help="of each class")
    parser.add_argument("--classes", nargs="+", default=["prose", "chat", "code"])
    parser.add_argument("--modes", nargs="+", default=["tree", "stream"], choices=sorted(SCRATCH))
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--no-echo", action="store_true", help="forget what the target says on lost branches")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the target; times below are the default model's")
    parser.add_argument("--draft-model", help="a drafter (default: the one that ships, or the default model itself)")
    parser.add_argument("--store", type=Path, help="folder of models (default: the usual one)")
    parser.add_argument("--rtt", type=float, default=50.0, help="ms of every edge")
    parser.add_argument("--stage-ms", type=float, default=9.0, help="a stage's time for one row")
    parser.add_argument("--row-ms", type=float, default=0.3, help="a stage's time for each further row")
    parser.add_argument("--draft-ms", type=float, default=3.5, help="a draft step")
    parser.add_argument("--leaf-ms", type=float, default=0.3, help="each further leaf of a draft step")
    parser.add_argument("--cores", type=int, default=2, help="that stages and drafter share; 0: each its own")
    args = parser.parse_args()
    bench = load(args)
    print(f"pass of one row {bench.ring.pass_ms:.0f} ms; tokens per plain pass: mean (each prompt), rows per token")
    for name, prompts in bench.prompts.items():
        for mode in args.modes:
            runs = [bench.run(prompt, Setting(mode, echo=not args.no_echo), args.max_tokens) for prompt in prompts]
            each = [outcome.per_pass for outcome, _ in runs]
            rows = statistics.mean(outcome.rows / outcome.tokens for outcome, _ in runs)
            shown = " ".join(f"{value:.2f}" for value in each)
            print(f"{name:6} {mode:7} {statistics.mean(each):5.2f}  ({shown})  {rows:5.1f}", flush=True)


if __name__ == "__main__":
    main()
