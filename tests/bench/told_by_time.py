"""Whether the time to the first token tells a key what another key asked: `python -m tests.bench.told_by_time`.

Two real nodes and a gateway with keys. In each round ann asks a prompt of some 1,500 tokens that nobody asked before,
bob the same one and one of that length that nobody asked, and ann hers again. Then the same with a large schema. Bob's
two must be alike; ann's second is what a shared prefix, or a kept schema, would look like. Medians, in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import platformdirs
from openai import AsyncOpenAI

from swarm.base.config import MemberConfig
from swarm.cli.serve import KEEP_S
from swarm.client.client import Requester, RequesterConfig
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.serve.keys import ApiKey
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

WORDS = "river bridge copper window garden paper winter engine yellow north table music".split()


def prompt(random: Random, words: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(words))


def schema(number: int, members: int) -> dict[str, Any]:
    """A large one, of names that no other has."""
    properties = {f"n{number}x{each}": {"type": "string", "maxLength": 9} for each in range(members)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


async def first(client: AsyncOpenAI, model: str, text: str, form: dict[str, Any] | None = None) -> float:
    """Seconds to the first token."""
    began = time.monotonic()
    held: Any = {} if form is None else {"extra_body": {"guided_json": form}}
    stream = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=2, temperature=0, stream=True, **held
    )
    found = 0.0
    async for chunk in stream:
        if not found and chunk.choices and chunk.choices[0].delta.content:
            found = time.monotonic() - began
    return found


async def measure(clients: dict[str, AsyncOpenAI], model: str, rounds: int, words: int, members: int) -> None:
    random = Random(7)
    for what in ("prompt", "schema"):
        times: dict[str, list[float]] = {"ann": [], "bob": [], "bob, another": [], "ann again": []}
        for number in range(rounds):
            if what == "prompt":
                one, other = ((prompt(random, words), None) for _ in range(2))
            else:
                one, other = ((prompt(random, 5), schema(2 * number + each, members)) for each in range(2))
            pairs = [("ann", one), ("bob", one), ("bob, another", other)]
            if number % 2:  # neither of bob's always comes first
                pairs[1:] = reversed(pairs[1:])
            for name, (text, form) in [*pairs, ("ann again", one)]:
                times[name].append(await first(clients[name[:3]], model, text, form))
        for name, found in times.items():
            told = " ".join(f"{each:.2f}" for each in sorted(found))
            print(f"{what:7} {name:13} median {statistics.median(found):.3f}   {told}", flush=True)


async def main(asked: argparse.Namespace) -> None:
    models = platformdirs.user_cache_path("wanswarm") / "models"
    with tempfile.TemporaryDirectory() as name:
        swarm = LocalSwarm(Path(name), arguments=("--cpu", "--threads", "1"))
        async with local_ring(swarm, split_layers(30, 2)) as ring:
            member = MemberConfig(Path(name) / "asking", models, ring.invite, lan=False)
            keys = tuple(ApiKey(key, hashlib.sha256(key.encode()).digest()) for key in ("ann", "bob"))
            config = GatewayConfig(api_keys=keys, draft="none", speculation="plain")
            async with (
                await Requester.connect(RequesterConfig(member, draft="none", keep_s=KEEP_S)) as requester,
                gateway(requester, config, lambda data: {}, "127.0.0.1", 0) as (host, port),
                AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="ann", timeout=600) as ann,
            ):
                clients = {"ann": ann, "bob": ann.with_options(api_key="bob")}
                model = (await ann.models.list()).data[0].id
                await first(ann, model, "Hello", schema(9999, 2))
                await measure(clients, model, asked.rounds, asked.words, asked.members)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=1480, help="of the prompt (default: %(default)s)")
    parser.add_argument("--members", type=int, default=150, help="of the schema (default: %(default)s)")
    asyncio.run(main(parser.parse_args()))
