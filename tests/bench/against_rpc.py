"""A ring against llama.cpp over RPC: the same file, prompts, distance and threads, in turns in one run.

    python -m tests.bench.against_rpc --rpc-server PATH --llama-server PATH [--model REF] [--rtt 50] [--long 2000]

llama.cpp is used as its own pages say: three servers for RPC of one thread, to which `llama-server` gives the layers in
equal parts, each behind a delay proxy as every node of the ring is. Prompts are given as the same token ids, answers
are greedy and of equal length, nothing of an earlier prompt is kept. Speeds are those after the first token. Runs are
kept in `--out`, and done ones are not run again: a long measurement may be taken in parts. llama.cpp's programs are
`ggml-rpc-server` and `llama-server` of its sources, built with CMake's -DGGML_RPC=ON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp

from swarm.base.errors import RunError
from swarm.base.events import silent
from swarm.client.client import Requester
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.run.api import Draft, Finished, RunRequest, Speculation
from swarm.testbed.bench import CLASSES, BenchRun, append_run, load_prompts, read_runs
from swarm.testbed.bench_ring import RingAsker, RingSettings, open_ring
from swarm.testbed.child_process import ChildProcess
from swarm.testbed.cluster import LocalSwarm
from tests.bench.window import ASKED, PROMPTS

RPC = "llama.cpp RPC"
WAYS = ((RPC, "none"), ("plain", "none"), ("stream", "auto"))
LONG = "long"
LONG_TOKENS = 8
"""Tokens of an answer to a long prompt: its first one is what is asked about."""
READY_S = 300.0
KEPT = ("token_ids", "new_tokens", "seconds", "ttft_seconds", "tokens_per_pass", "pass_ms", "parts_ms", "ring")
"""What is kept of a run of ours."""


@dataclass(frozen=True)
class Binaries:
    """Where llama.cpp's programs lie."""

    rpc_server: Path
    llama_server: Path


@dataclass(frozen=True)
class Table:
    """Medians over the prompts of one class: tokens/s after the first token, seconds to it; and the medians over
    prompts of speeds over llama.cpp's, and of its seconds to the first token over this way's."""

    kind: str
    way: str
    prompts: int
    tokens_per_second: float
    first_s: float
    over_rpc: float
    sooner: float


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def told(events: Iterable[tuple[float, Mapping[str, object]]]) -> dict[str, object]:
    """A result of `llama-server`'s events, each with the seconds after which it came: what a run of ours says.

    Raises RunError for an answer without an end or without a token.
    """
    tokens, first, ended = list[int](), None, None
    for at, event in events:
        tokens += cast(list[int], event.get("tokens", []))
        first = at if first is None and tokens else first
        ended = at if event.get("stop") else ended
    if first is None or ended is None:
        raise RunError(f"expected tokens and an end from llama-server, found {len(tokens)} tokens; see its log")
    return {"token_ids": tokens, "new_tokens": len(tokens), "seconds": ended, "ttft_seconds": first}


def long_prompts(requester: Requester, context: int) -> list[list[int]]:
    """Prompts of about so many tokens, of this repository's pages."""
    found = []
    for page in PROMPTS["prose"]:
        text = (Path(__file__).resolve().parents[2] / page).read_text()
        part = requester.decode(requester.encode(text)[: context - 60])
        found.append(list(requester.encode_chat([{"role": "user", "content": f"{part}\n\n{ASKED['prose']}"}])))
    return found


def summarise(runs: Sequence[BenchRun]) -> list[Table]:
    """A line for each class and way; the ratios are of prompts that llama.cpp answered too."""
    rpc = {(run.kind, run.prompt): run for run in runs if run.speculation == RPC}
    ways = [way for way, _ in WAYS]
    groups = dict[tuple[str, str], list[BenchRun]]()
    for run in runs:
        groups.setdefault((run.kind, run.speculation), []).append(run)
    kinds = [*CLASSES, LONG]
    lines = []
    for kind, way in sorted(groups, key=lambda key: (kinds.index(key[0]), ways.index(key[1]))):
        found = groups[kind, way]
        pairs = [(run, rpc[kind, run.prompt]) for run in found if (kind, run.prompt) in rpc]
        lines.append(
            Table(
                kind,
                way,
                len(found),
                statistics.median(run.tokens_per_second for run in found),
                statistics.median(run.result["ttft_seconds"] for run in found),
                _median(run.tokens_per_second / other.tokens_per_second for run, other in pairs),
                _median(other.result["ttft_seconds"] / run.result["ttft_seconds"] for run, other in pairs),
            )
        )
    return lines


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


class Rpc:
    """One `llama-server` over three far `rpc-server`s."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http, self.url = http, url

    async def __call__(self, prompt: Sequence[int], count: int) -> dict[str, object]:
        """Greedy, exactly so many tokens."""
        asked = {
            "prompt": list(prompt),
            "n_predict": count,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }
        begun, events = time.monotonic(), list[tuple[float, Mapping[str, object]]]()
        async with self.http.post(f"{self.url}/completion", json=asked) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    events.append((time.monotonic() - begun, json.loads(line[6:])))
        return told(events)


@contextlib.asynccontextmanager
async def open_rpc(binaries: Binaries, model: Path, rtt_ms: float, nodes: int, state: Path) -> AsyncIterator[Rpc]:
    """Servers, links and the client; everything is stopped at the end."""
    async with contextlib.AsyncExitStack() as undo:

        async def start(name: str, *words: str, stdin: bool = False) -> ChildProcess:
            child = await ChildProcess.start(words, state / f"{name}.log", stdin=stdin)
            undo.push_async_callback(child.stop, 10.0)
            return child

        far = []
        for number in range(nodes):
            port = free_port()
            server = (str(binaries.rpc_server), "--host", "127.0.0.1", "--port", str(port), "--threads", "1")
            await start(f"rpc-{number}", *server)
            await _listens(port)
            link = ("--to", f"127.0.0.1:{port}", "--delay-ms", str(rtt_ms / 2))
            proxy = await start(f"link-{number}", sys.executable, "-m", "swarm.testbed.delay_proxy", *link, stdin=True)
            far.append(str((await proxy.event("ready", 60.0))["listen"]))
        port = free_port()
        words = [str(binaries.llama_server), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
        words += ["--rpc", ",".join(far), "--gpu-layers", "999", "--tensor-split", ",".join(["1"] * nodes)]
        words += ["--threads", "1", "--threads-batch", "1", "--parallel", "1", "--ctx-size", "4096"]
        client = await start("llama-server", *words)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
            await _healthy(http, f"http://127.0.0.1:{port}", client)
            yield Rpc(http, f"http://127.0.0.1:{port}")


async def _listens(port: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


async def _healthy(http: aiohttp.ClientSession, url: str, client: ChildProcess) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            if not client.running:
                raise RunError(f"llama-server ended: {client.last_words()}; its log is {client.log}")
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)


async def ask_ring(asker: RingAsker, prompt: Sequence[int], way: str, draft: str, count: int) -> dict[str, object]:
    """The same of a ring of ours; a run leaves its receipt, as runs do."""
    request = RunRequest(
        prompt_ids=tuple(prompt),
        max_tokens=count,
        ignore_eos=True,
        speculation=cast(Speculation, way),
        draft=cast(Draft, draft),
    )
    async with aclosing(asker.requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                result = event.result.as_json()
                return {name: result[name] for name in KEPT}
    raise RunError("a benchmark run ended without a result; see the logs of the nodes in the state folder")


async def measure(args: argparse.Namespace, state: Path) -> list[BenchRun]:
    """All that `--out` does not hold yet, in turns; all runs of this model and distance."""
    store = ModelStore(args.store)
    model, layers = store.path(args.model), store.open(args.model, (0, 1), silent).manifest.n_layers
    ways = [pair for pair in WAYS if pair[0].split()[0] in args.ways]
    texts = load_prompts()
    swarm = LocalSwarm(state, args.model, arguments=("--cpu", "--threads", "1", "--models", str(store.root)))
    binaries = Binaries(args.rpc_server, args.llama_server)
    done = {run.key: run for run in read_runs(args.out)}
    async with (
        open_rpc(binaries, model, args.rtt, args.nodes, state) as rpc,
        open_ring(RingSettings(swarm, store.root, layers, args.nodes), args.rtt, silent) as ring,
    ):
        assert isinstance(ring, RingAsker)
        encode = ring.requester.encode_chat
        prompts = {
            kind: [list(encode([{"role": "user", "content": text}])) for text in texts[kind]] for kind in args.classes
        }
        warm = next(iter(prompts.values()), [[1, 2, 3]])[-1]
        await rpc(warm, 4)
        await ask_ring(ring, warm, "plain", "none", 4)
        wanted = [(kind, n, args.max_tokens) for n in range(args.prompts) for kind in args.classes]
        if args.long:
            prompts[LONG] = long_prompts(ring.requester, args.long)
            wanted += [(LONG, n, LONG_TOKENS) for n in range(min(args.long_prompts, len(prompts[LONG])))]
        for kind, n, count in wanted:
            for way, draft in ways:
                key = (args.rtt, kind, n, way, draft)
                if key in done:
                    continue
                prompt = prompts[kind][n]
                result = await (rpc(prompt, count) if way == RPC else ask_ring(ring, prompt, way, draft, count))
                run = done[key] = BenchRun(args.rtt, kind, n, way, draft, result | {"prompt_tokens": len(prompt)})
                append_run(args.out, run)
                print(
                    f"{kind} {n + 1} {way:13} {run.tokens_per_second:6.2f} tokens/s, the first after "
                    f"{run.result['ttft_seconds']:.2f} s",
                    flush=True,
                )
    return list(done.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rpc-server", type=Path, required=True, help="llama.cpp's rpc-server (ggml-rpc-server)")
    parser.add_argument("--llama-server", type=Path, required=True, help="its llama-server, of the same build")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model that is one GGUF file")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rtt", type=float, default=50.0, help="milliseconds, of every edge")
    parser.add_argument("--classes", nargs="*", choices=CLASSES, default=["prose", "code"])
    parser.add_argument(
        "--ways", nargs="+", choices=["llama.cpp", "plain", "stream"], default=["llama.cpp", "plain", "stream"]
    )
    parser.add_argument("--prompts", type=int, default=4, help="of each class")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument(
        "--long", type=int, default=0, help="tokens of a prompt whose first token is waited for; 0: none"
    )
    parser.add_argument("--long-prompts", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("against-rpc.jsonl"))
    args = parser.parse_args()
    for path in (args.rpc_server, args.llama_server):
        if not path.is_file():
            parser.error(f"expected a program of llama.cpp, found nothing at {path}; build it with -DGGML_RPC=ON")
    with tempfile.TemporaryDirectory() as state:
        runs = asyncio.run(measure(args, Path(state)))
    for line in summarise(runs):
        print(
            f"{line.kind:6} {line.way:13} {line.prompts} prompts: {line.tokens_per_second:5.2f} tokens/s, "
            f"{line.over_rpc:.2f} x {RPC}; the first after {line.first_s:.2f} s, {line.sooner:.2f} x as soon"
        )


if __name__ == "__main__":
    main()
