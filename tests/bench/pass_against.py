"""A pass of this build against another checkout's, in turns: `python -m tests.bench.pass_against CHECKOUT [ROUNDS]`.

Layers 10 to 19 of SmolLM2 expanded, one thread each, as two processes of this Python; medians of what
`swarm.model.probe` of either measures. The other checkout may be older than the rooms.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

DTYPES, ROWS, PASSES = ("float32", "bfloat16"), (1, 16, 64), 15


def child(root: str) -> None:
    """Answer lines `DTYPE ROWS` with milliseconds, from the package in `root`."""
    sys.path.insert(0, root)
    import platformdirs
    import torch

    import swarm
    from swarm.model import probe
    from swarm.model.block import load_block

    assert Path(swarm.__file__).is_relative_to(root), swarm.__file__
    try:
        from swarm.model.files.checkpoint import open_model
        from swarm.model.files.store import ModelStore
    except ImportError:  # before the rooms
        from swarm.model.checkpoint import open_model  # type: ignore[import-not-found, no-redef]
        from swarm.model.store import ModelStore  # type: ignore[import-not-found, no-redef]
    torch.set_num_threads(1)
    measure = getattr(probe, "median_ms", None) or probe._median_ms
    store = ModelStore(platformdirs.user_cache_path("wanswarm") / "models")
    checkpoint, cpu = open_model("smollm2-135m-instruct", store), torch.device("cpu")
    blocks = {name: load_block(checkpoint, 10, 20, cpu, getattr(torch, name)) for name in DTYPES}
    print("ready", flush=True)
    for line in sys.stdin:
        name, rows = line.split()
        print(measure(blocks[name], int(rows), PASSES), flush=True)


def main() -> None:
    other, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    here = Path(__file__).resolve().parents[2]
    asked = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for root in (other, here)
    ]

    def ask(process: subprocess.Popen[str], line: str) -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        return float(process.stdout.readline())

    for process in asked:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for name in DTYPES:
        for rows in ROWS:
            pairs = []
            for turn in range(rounds):
                order = asked if turn % 2 else asked[::-1]
                took = {id(process): ask(process, f"{name} {rows}\n") for process in order}
                pairs.append((took[id(asked[0])], took[id(asked[1])]))
            ratio = statistics.median(before / now for before, now in pairs)
            now = statistics.median(now for _, now in pairs)
            print(f"{name} {rows:3} rows: {now:.2f} ms, {ratio:.3f} times as fast as {other.name}", flush=True)
    for process in asked:
        process.communicate()


if __name__ == "__main__":
    child(sys.argv[2]) if sys.argv[1:2] == ["--child"] else main()
