"""Whether hidden rows that middle stages send early carry, in simulated time: python -m tests.bench.early_taps

As `tests.bench.sim_real`: the real target in every frame, the drafter that ships, simulated links and stages. Beside
that, when a stage before the last is through with a frame, its rows travel straight home, and the requester reads of
each what the target will say: by the model's own norm and head behind a matrix that was fitted (least squares, on
pages and modules of this repository) to make the last layer's rows of them. That is what a drafter fed by early taps
would know more than one without. "told": the same moment with the target's own answer, which no drafter can better.
Bytes and the requester's compute are free here, so what comes out is the most that can be gained.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from draft.base import Child, Expansion
from swarm.model.block import Block, Job
from swarm.model.files.checkpoint import load_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.rows import Layout, no_commits
from swarm.run.controller import Setting
from swarm.run.planned_frame import PlannedFrame
from swarm.run.proposals import TAIL
from tests.bench.across import rows_of
from tests.bench.sim_real import SCRATCH, Bench, RealRing, load
from tests.bench.sim_speculation import Outcome, Times

WIDTH = 8
Reader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Shares [n, vocabulary] that early rows [n, d] give, where the target's logits are the second."""


class EarlyRing(RealRing):
    """A simulated ring whose stage `stage` sends the rows behind layer `tap` home as soon as it has them."""

    stage_sends: int
    tap: int
    read: Reader
    wanted: dict[int, list[tuple[int, tuple[Child, ...]]]]

    def answers(self, frame: PlannedFrame) -> list[int]:
        watched = self.block.forward_watched([Job(self.kv, frame.commits, frame.rows, None)], (self.tap,), False)
        (logits,), rows = watched.outputs, watched.tapped[0][self.tap]
        shares = self.read(rows[torch.from_numpy(frame.rows.want)], logits)
        best, ids = shares.topk(WIDTH, dim=-1) if len(shares) else (shares, shares.long())
        flight = next(flight for flight in self.spec._flights if flight.seq == frame.seq)
        self.wanted[frame.seq] = [
            (node.id, tuple(Child(t, c) for t, c in zip(*row, strict=True)))
            for node, row in zip(flight.wanted, zip(ids.tolist(), best.tolist(), strict=True), strict=True)
        ]
        return [int(token) for token in logits.argmax(-1)]

    def hop(self, index: int, frame: PlannedFrame, answers: list[int], times: Times) -> None:
        if index == self.stage_sends + 1:
            self.after(self.ring.hops_ms[-1] / 1000.0, lambda: self.came(self.wanted.pop(frame.seq)))
        super().hop(index, frame, answers, times)

    def came(self, rows: list[tuple[int, tuple[Child, ...]]]) -> None:
        """Early rows: proposals for those of their tokens that live and were not answered."""
        live = self.spec._tree.live
        found = [Expansion(id, (children,)) for id, children in rows if id in live and live[id].answer < 0]
        self.spec._proposals._adopt(found, TAIL)
        self.spec._supply()


def run(bench: Bench, prompt: list[int], count: int, sends: int, tap: int, read: Reader | None) -> Outcome:
    """One streaming run; `read` None: nothing comes early."""
    kind = RealRing if read is None else EarlyRing
    ring = kind(
        bench.ring, Setting("stream"), int, prompt, count, bench.drafter, bench.draft, suffix=True,
        scratch=SCRATCH["stream"],
    )  # fmt: skip
    ring.block = bench.block
    if isinstance(ring, EarlyRing) and read is not None:
        ring.stage_sends, ring.tap, ring.read, ring.wanted = sends, tap, read, {}
    with (
        torch.inference_mode(),
        closing(KVPool(bench.block, 1 << 40).open(ring.layout, 0, bench.block.n_layers)) as ring.kv,
    ):
        return ring.run()


@torch.inference_mode()
def rows_behind(block: Block, texts: list[list[int]], taps: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """Rows behind layers, of all positions of texts."""
    found: dict[int, list[torch.Tensor]] = {tap: [] for tap in taps}
    for text in texts:
        with closing(KVPool(block, 1 << 40).open(Layout(8, len(text)), 0, block.n_layers)) as kv:
            assert isinstance(kv, SessionKV)
            watched = block.forward_watched([Job(kv, no_commits(), rows_of(text, 0), None)], taps, False)
            for tap in taps:
                found[tap].append(watched.tapped[0][tap][8:].float())
    return {tap: torch.cat(rows) for tap, rows in found.items()}


def fitted(early: torch.Tensor, last: torch.Tensor, ridge: float = 1e-2) -> torch.Tensor:
    """[d + 1, d] that makes rows of the last layer of early ones with a 1 behind."""
    wide = torch.cat([early, torch.ones(len(early), 1)], -1).double()
    square = wide.T @ wide
    square += ridge * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    return torch.linalg.solve(square, wide.T @ last.double()).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2, help="of each class")
    parser.add_argument("--classes", nargs="+", default=["prose", "chat", "code"])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=40, help="of 256 tokens, to fit on")
    parser.add_argument("--cores", type=int, default=0)
    args = parser.parse_args()
    more = {
        "store": None,
        "model": DEFAULT_MODEL,
        "draft_model": None,
        "rtt": 50.0,
        "stage_ms": 9.0,
        "row_ms": 0.3,
        "draft_ms": 7.0,
    }
    bench = load(argparse.Namespace(**vars(args), **more, leaf_ms=0.6))
    block, root = bench.block, Path(__file__).resolve().parents[2]
    tokenizer = load_tokenizer(DEFAULT_MODEL, ModelStore())
    paths = [*sorted(root.glob("docs/*.md")), *sorted(root.glob("swarm/run/*.py"))]
    ids = [tokenizer.encode(path.read_text()) for path in paths]
    parts = [text[at : at + 256] for text in ids for at in range(0, len(text) - 255, 256)]
    step = max(1, len(parts) // args.texts)
    taps = (10, 20, 30)
    rows = rows_behind(block, parts[::step][: args.texts], taps)
    half = int(0.9 * len(rows[30]))
    head = block.loaded.model.get_output_embeddings()
    readers: dict[str, tuple[int, int, Reader]] = {"told": (1, 20, lambda rows, logits: torch.softmax(20 * logits, -1))}
    for sends, tap in ((0, 10), (1, 20)):
        matrix = fitted(rows[tap][:half], rows[30][:half])

        def shown(early: torch.Tensor, logits: torch.Tensor, matrix: torch.Tensor = matrix) -> torch.Tensor:
            wide = torch.cat([early.float(), torch.ones(len(early), 1)], -1)
            return torch.softmax(head((wide @ matrix).to(logits.dtype)).float(), -1)

        with torch.inference_mode():
            truth = head(rows[30][half:]).argmax(-1)
            best = shown(rows[tap][half:], torch.zeros(1)).topk(WIDTH).indices
        first = float((best[:, 0] == truth).float().mean())
        eight = float((best == truth[:, None]).any(-1).float().mean())
        print(f"rows behind layer {tap}: first choice {first:.2f}, first eight {eight:.2f} of {len(truth)}", flush=True)
        readers[f"layer {tap}"] = (sends, tap, shown)
    for name, prompts in bench.prompts.items():
        plain = [run(bench, prompt, args.max_tokens, 0, 0, None).per_pass for prompt in prompts]
        print(f"{name:6} {'none':9} {statistics.mean(plain):5.2f} tokens per plain pass", flush=True)
        for label, (sends, tap, read) in readers.items():
            found = [run(bench, prompt, args.max_tokens, sends, tap, read).per_pass for prompt in prompts]
            gain = statistics.mean(found) / statistics.mean(plain)
            print(f"{name:6} {label:9} {statistics.mean(found):5.2f} ({gain:.2f})", flush=True)


if __name__ == "__main__":
    main()
