"""Many users of one gateway over one ring on this machine: total speed, exactness, and how a newcomer fares.

python -m tests.bench.many_users [--users 1 2 4 8] [--rtt 0] [--speculation plain] [--tokens 48] [--nodes 2]

Real node processes and a real gateway; each user asks another question, greedily. Prints one line per number of users
and JSON at the end. `newcomer` is the time to the first token of one more user who comes while the others are answered,
against the same question asked alone; the medians of five each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from openai import AsyncOpenAI

from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

QUESTIONS = (
    "Why does ice float?",
    "How is paper made?",
    "What does a bee eat in winter?",
    "Describe the sea at night.",
    "How do locks on a canal work?",
    "Why do cats purr?",
    "What is a prime number?",
    "How does bread rise?",
    "Who invented the bicycle?",
)
NEWCOMERS = 5
CROWD_TOKENS = 1500


@dataclass(frozen=True)
class Answered:
    """One answer: its text, tokens, seconds to the first token and to the last."""

    text: str
    tokens: int
    first_s: float
    seconds: float


async def ask(client: AsyncOpenAI, question: str, tokens: int) -> Answered:
    """One streamed answer of exactly `tokens` tokens."""
    started = time.monotonic()
    first, text, count = 0.0, "", 0
    stream = await client.chat.completions.create(
        model=(await client.models.list()).data[0].id,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic() - started
            text += chunk.choices[0].delta.content
        if chunk.usage is not None:
            count = chunk.usage.completion_tokens
    return Answered(text, count, first, time.monotonic() - started)


async def measure(client: AsyncOpenAI, users: list[int], tokens: int) -> dict[str, Any]:
    alone = [await ask(client, question, tokens) for question in QUESTIONS]
    single = statistics.median(one.tokens / one.seconds for one in alone)
    print(f"alone: {single:.2f} tokens/s, first token after {statistics.median(o.first_s for o in alone):.2f} s")
    rows = []
    for count in users:
        started = time.monotonic()
        answers = await asyncio.gather(*(ask(client, QUESTIONS[i], tokens) for i in range(count)))
        seconds = time.monotonic() - started
        total = sum(answer.tokens for answer in answers) / seconds
        same = sum(answer.text == alone[i].text for i, answer in enumerate(answers))
        rows.append({"users": count, "tokens_per_second": total, "factor": total / single, "same": same})
        print(
            f"{count} users: {total:.2f} tokens/s, {total / single:.2f} x one, {same}/{count} answers the same as alone"
        )
    quiet = statistics.median([(await ask(client, QUESTIONS[-1], 2)).first_s for _ in range(NEWCOMERS)])
    crowd = [asyncio.create_task(ask(client, question, CROWD_TOKENS)) for question in QUESTIONS[: max(users) - 1]]
    await asyncio.sleep(2.0)
    busy = statistics.median([(await ask(client, QUESTIONS[-1], 2)).first_s for _ in range(NEWCOMERS)])
    if any(task.done() for task in crowd):
        raise SystemExit("the crowd was done before the newcomers; raise CROWD_TOKENS")
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    factor = busy / quiet
    print(f"newcomer among {len(crowd)}: first token after {busy:.2f} s, {factor:.2f} x alone")
    return {"single": single, "rows": rows, "newcomer_factor": factor, "newcomer_first_s": busy}


async def main(arguments: argparse.Namespace) -> None:
    models = platformdirs.user_cache_path("wanswarm") / "models"
    with tempfile.TemporaryDirectory(prefix="swarm-users-") as name:
        folder = Path(name)
        words = ("--cpu", "--threads", str(arguments.threads), "--dtype", arguments.dtype)
        swarm = LocalSwarm(folder, rtt_ms=arguments.rtt, arguments=words)
        async with local_ring(swarm, split_layers(30, arguments.nodes)) as ring:
            member = MemberConfig(folder / "asking", models, ring.invite, lan=False)
            draft = "none" if arguments.speculation == "plain" else "auto"
            config = GatewayConfig(speculation=arguments.speculation, draft=draft, max_running=32)
            async with (
                await Requester.connect(RequesterConfig(member, draft=draft)) as requester,
                gateway(requester, config, lambda data: {}, "127.0.0.1", 0) as (host, port),
                AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="unused", timeout=900) as client,
            ):
                found = await measure(client, arguments.users, arguments.tokens)
    print(json.dumps({**vars(arguments), **found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rtt", type=float, default=0.0)
    parser.add_argument("--speculation", default="plain")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    asyncio.run(main(parser.parse_args()))
