"""How long a run stands still when a node of its ring is killed, stopped or told to leave.

    python -m tests.bench.recovery [--model REF] [--trials 24] [--blow kill|stop|leave] [--json FILE]

Three blocks, two node processes for each, so that a replacement holds the layers. Every trial strikes one stage of the
ring at a random moment of a run, and its tokens must be those of an undisturbed one. Times count from the blow: the
requester knows (detect), has another route (plan), the new ring stands and what the newcomer lacks is on its way to it
(form), the next token is there (token). "behind" is how long the newcomer's first frame waited for the replayed rows:
its own block prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swarm.model.files.store import ModelStore
from swarm.run.api import Finished, RunRequest
from swarm.testbed.cluster import split_layers
from tests.ring.nest import Nest, Node, nest
from tests.ring.trials import MODES, Blows, Trial, all_serve, connected

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "leave": signal.SIGTERM}
PARTS = ("detect", "plan", "form", "token", "behind", "pause")


async def trials(args: argparse.Namespace) -> list[Trial]:
    """Run them all over one set of processes; a node that ended is started again."""
    models = ModelStore()
    n_layers = models.open(args.model, (0, 1)).manifest.n_layers
    found: list[Trial] = []
    with tempfile.TemporaryDirectory() as state:
        async with nest(args.model, Path(state), "--dtype", args.dtype, "--grace", "3", models=models.root) as nodes:
            for block in split_layers(n_layers, 3) * 2:
                await nodes.add(block)
            async with await connected(nodes, Path(state) / "asker", draft="auto") as requester:
                for number in range(args.trials):
                    await all_serve(nodes, requester)
                    rng = random.Random(args.seed + number)
                    request = RunRequest(
                        tuple(rng.randrange(1000) for _ in range(rng.randint(20, args.prompt))),
                        max_tokens=args.tokens,
                        speculation=MODES[number % len(MODES)],
                        ignore_eos=True,
                    )
                    after, place = rng.randint(1, args.tokens * 3 // 4), rng.randrange(3)
                    blows = Blows(nodes, requester, request, after, place, rng.random() * 0.05, _blow(args.blow))
                    trial = await blows.run()
                    await _heal(nodes, trial, 0.0 if args.blow == "stop" else 15.0)
                    if args.check:
                        await all_serve(nodes, requester)
                        whole = await _undisturbed(requester, request)
                        assert trial.result.token_ids == whole, (number, request.speculation, trial.reasons)
                    found.append(trial)
                    print(_line(number, trial), flush=True)
    return found


def _blow(kind: str) -> Any:
    return lambda node: node.signal(SIGNALS[kind])


async def _undisturbed(requester: Any, request: RunRequest) -> tuple[int, ...]:
    async for event in requester.run(replace(request, speculation="plain", draft="none", receipt=False)):
        if isinstance(event, Finished):
            return event.result.token_ids
    raise AssertionError("no result")


async def _heal(nodes: Nest, trial: Trial, within_s: float) -> None:
    victim: Node | None = trial.victim
    if victim is None:
        return
    victim.signal(signal.SIGCONT)
    if await nodes.ends(victim, within_s):
        await nodes.again(victim)


def _line(number: int, trial: Trial) -> str:
    parts = " ".join(f"{name} {value:6.3f}" for name in PARTS if (value := getattr(trial, name)) is not None)
    mode = trial.result.speculation
    return f"{number:3d} {mode:6s} stage {trial.place} held {trial.held:4d}: {parts or 'ended before the blow'}"


def summary(found: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Median, nine in ten, and worst, of each part, in seconds. Each step counts from the one before."""
    hit = [t for t in found if t.token is not None and t.detect is not None and t.form is not None]
    steps: dict[str, list[float]] = {
        "detect": [t.detect or 0.0 for t in hit],
        "plan": [(t.plan or 0.0) - (t.detect or 0.0) for t in hit],
        "form": [(t.form or 0.0) - (t.plan or 0.0) for t in hit],
        "rest": [(t.token or 0.0) - (t.form or 0.0) for t in hit],
        "behind": [t.behind or 0.0 for t in hit],
        "all": [t.token or 0.0 for t in hit],
        "all but behind": [(t.token or 0.0) - (t.behind or 0.0) for t in hit],
        "pause": [t.pause or 0.0 for t in hit],
    }
    return {name: _spread(values) for name, values in steps.items() if values}


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    ninth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 3), "p90": round(ninth, 3), "worst": round(ordered[-1], 3)}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--prompt", type=int, default=200, help="the longest prompt, in tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blow", choices=tuple(SIGNALS), default="kill")
    parser.add_argument("--check", action="store_true", help="run each once more undisturbed and compare")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = asyncio.run(trials(args))
    for mode in (*MODES, ""):
        some = [t for t in found if mode in ("", t.result.speculation)]
        spreads = summary(some)
        count = sum(t.token is not None for t in some)
        print(f"\n{mode or 'all modes'}: {count} of {len(some)} struck in time; seconds: median, p90, worst")
        for name, spread in spreads.items():
            print(f"  {name:15s} {spread['median']:7.3f} {spread['p90']:7.3f} {spread['worst']:7.3f}")
    if args.json:
        args.json.write_text(json.dumps({"all": summary(found)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
