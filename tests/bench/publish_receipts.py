"""Make the receipts that docs/receipts/ shows: real runs of the default model over real nodes of this machine.

    python -m tests.bench.publish_receipts docs/receipts [NAME ...]

Run it when the format has changed. Names: three-cpu-stages, emulated-wan, recovered, private-ends; all by default.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from receipts.check.verify import verify
from swarm.base.config import MemberConfig
from swarm.base.nodeid import id_text
from swarm.client.client import Requester, RequesterConfig
from swarm.model.files.store import ModelStore
from swarm.run.api import CommittedTokens, Finished, RunRequest
from swarm.testbed.cluster import LocalRing, LocalSwarm, local_ring

THIRDS = [(0, 10), (10, 20), (20, 30)]
FLOAT32 = ("--cpu", "--threads", "1", "--dtype", "float32")
BFLOAT16 = ("--cpu", "--threads", "1", "--dtype", "bfloat16")


async def three_cpu_stages(path: Path, folder: Path) -> None:
    """Three nodes at no distance, and a fourth that holds no part of the ring and witnesses it."""
    async with local_ring(LocalSwarm(folder, arguments=FLOAT32), [*THIRDS, (29, 30)]) as ring:
        await ring.generate("Why is the sky blue?", "--max-tokens", "32", "--receipt", str(path))


async def emulated_wan(path: Path, folder: Path) -> None:
    """50 ms between any two."""
    async with local_ring(LocalSwarm(folder, rtt_ms=50.0, arguments=BFLOAT16), THIRDS) as ring:
        await ring.generate("What do bees eat?", "--max-tokens", "32", "--receipt", str(path))


async def recovered(path: Path, folder: Path) -> None:
    """20 ms apart; the middle stage is killed after twelve tokens, and another takes over."""
    async with local_ring(LocalSwarm(folder, rtt_ms=20.0, arguments=BFLOAT16), THIRDS) as ring:
        await ring.add((10, 20))
        await _killing(ring, path)


async def _killing(ring: LocalRing, path: Path) -> None:
    member = MemberConfig(ring.requester_state, ModelStore().root, ring.invite, lan=False, punch=False)
    async with await Requester.connect(RequesterConfig(member, draft="none")) as requester:
        prompt = requester.encode_chat([{"role": "user", "content": "Name three large animals."}])
        request = RunRequest(prompt, 40, speculation="plain", draft="none")
        seen = 0
        async with aclosing(requester.run(request, path)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    seen += len(event.tokens)
                    if seen == 12:
                        stages = next(iter(requester.desk.links.values())).opening.stages
                        middle = next(node for node in ring.nodes if node.id == id_text(stages[1].node))
                        middle.send_signal(signal.SIGKILL)
                if isinstance(event, Finished):
                    assert event.result.recoveries >= 1


async def private_ends(path: Path, folder: Path) -> None:
    """The requester keeps the first and the last three layers to itself."""
    async with local_ring(LocalSwarm(folder, arguments=FLOAT32), [(0, 15), (15, 30)]) as ring:
        words = ("--private", "3", "--max-tokens", "24", "--receipt", str(path))
        await ring.generate("Write a haiku about the sea.", *words)


RUNS: Mapping[str, Callable[[Path, Path], Awaitable[None]]] = {
    "three-cpu-stages": three_cpu_stages,
    "emulated-wan": emulated_wan,
    "recovered": recovered,
    "private-ends": private_ends,
}


async def make(name: str, where: Path) -> None:
    """One of them. Raises SystemExit when it does not verify."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        await RUNS[name](path, Path(folder) / "swarm")
        data = path.read_bytes()
    verdict = verify(data)
    if verdict.exit_code:
        raise SystemExit(f"{name}: {verdict.line}")
    (where / f"{name}.json").write_bytes(data)
    print(f"{name}: {verdict.line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.names or RUNS:
        asyncio.run(make(name, arguments.folder))


if __name__ == "__main__":
    main()
