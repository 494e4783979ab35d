"""Real node processes die, leave, hang, come back and are replaced by strangers, while two askers and a gateway go on.

Nobody disturbs the first node, the asker and the gateway, so what they keep of all who came and went shows as growth.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import torch
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from swarm.base.errors import SwarmError
from swarm.client.client import Requester
from swarm.run.api import Finished, RunResult
from tests.ring.nest import Nest, nest
from tests.ring.trials import all_serve, connected, random_request
from tests.soak.footprint import Footprint, disk_bytes, footprint

VOCAB = 97
BLOCKS = ((0, 2), (2, 4), (4, 6))
TOKENS = 24
EVENTS = ("kill", "leave", "hang", "stranger")
ASKERS = 2
ROUNDING = 1e-3
"""Of a logit; a wrong token of this model is off by 0.1 and more."""
PATIENCE_S = 60.0
GATEWAY_S = 120.0
LEFT = 0.2
"""Share of the gateway's answers."""
PAUSE_S = 1.0
"""After a run that came to nothing, so that a swarm that cannot be asked is not asked all the time."""
MOST_TOLD = 20
"""Wrong or broken runs that are told in full."""


@dataclass
class Tally:
    """What became of runs, by asker: "ring" (this process) or "http" (through the gateway).

    asked       runs begun, and answered: to their end, every token right, with a receipt that verifies
    recovered   of those answered, through at least one recovery
    early       ended by the swarm's own word ("swarm_incomplete"), with right tokens as far as they came
    refused     by the name of the error that said why
    wrong       a token that the model would not draw: must stay 0
    unverified  a receipt that is refused: must stay 0
    broken      ended by an error without a name, or not at all: must stay 0
    left        streamed answers that their reader left in the middle, beside those asked
    """

    asked: int = 0
    answered: int = 0
    recovered: int = 0
    early: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    unverified: int = 0
    broken: int = 0
    left: int = 0

    @property
    def faults(self) -> int:
        """What must not happen."""
        return self.wrong + self.unverified + self.broken


@dataclass
class Churn:
    """What happened so far. `told`: faults in words. `disk`: of the folders watched, bytes."""

    events: Counter[str] = field(default_factory=Counter)
    ring: Tally = field(default_factory=Tally)
    http: Tally = field(default_factory=Tally)
    told: list[str] = field(default_factory=list)
    sizes: list[tuple[float, dict[str, Footprint]]] = field(default_factory=list)
    disk: dict[str, int] = field(default_factory=dict)

    def fault(self, text: str) -> None:
        """Keep a fault in words, of the first MOST_TOLD."""
        if len(self.told) < MOST_TOLD:
            self.told.append(text[:4000])


Look = Callable[[float, Churn], None]
"""Is told now and then how far it came: seconds, and what happened so far."""


async def disturb(nodes: Nest, draw: random.Random, churn: Churn, until: float, pause_s: float) -> None:
    """One blow after the other to any node but the first; the blocks keep a holder each, and get their second back."""
    while time.monotonic() < until:
        await asyncio.sleep(draw.random() * 2 * pause_s)
        what, node = draw.choice(EVENTS), draw.choice(nodes.nodes[1:])
        churn.events[what] += 1
        if what == "hang":
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(draw.uniform(0.5, 12.0))
            node.signal(signal.SIGCONT)
            continue
        node.signal(signal.SIGTERM if what == "leave" else signal.SIGKILL)
        code = await node.ended()
        if code not in (0, -9):
            churn.events["bad exit"] += 1
            churn.fault(f"{node.name} ended with code {code} after {what!r}")
        if what == "stranger":
            nodes.nodes.remove(node)
            nodes.invite = str(nodes.nodes[0].ready["invite"])
            await nodes.add(node.layers)
        else:
            await nodes.again(node)


def near_best(whole: LlamaForCausalLM, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether each token is the one that transformers finds best, or one that rounding cannot tell from it.

    In hours of random prompts some have two best tokens 1e-5 apart, where float32 in another order of sums decides.
    """
    if not tokens:
        return True
    with torch.inference_mode():
        logits = whole(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return bool((logits.max(-1).values - taken <= ROUNDING).all())


async def one_run(requester: Requester, draw: random.Random, whole: LlamaForCausalLM, churn: Churn) -> RunResult | None:
    """One run and what became of it, in the tally. None: it has no result."""
    tally, request = churn.ring, random_request(draw, VOCAB, TOKENS, longest=60)
    tally.asked += 1
    result: RunResult | None = None
    try:
        async with aclosing(requester.run(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    result = event.result
    except SwarmError as error:
        tally.refused[type(error).__name__] += 1
        await asyncio.sleep(PAUSE_S)
        return None
    if result is None:
        tally.broken += 1
        churn.fault(f"no result: {request}")
        return None
    receipt = Path(str(result.receipt))
    verdict = await asyncio.to_thread(verify, receipt.read_bytes())
    for beside in receipt.parent.glob(f"{receipt.stem}.*"):
        beside.unlink()  # ten hours of them are not what is measured
    ended = result.finish_reason == "length" and len(result.token_ids) == TOKENS
    if not near_best(whole, request.prompt_ids, result.token_ids):
        tally.wrong += 1
        churn.fault(f"wrong: {request} {result}")
    elif verdict.refusal is not None:
        tally.unverified += 1
        churn.fault(f"unverified: {verdict.refusal} {request} {result}")
    elif result.finish_reason == "swarm_incomplete":
        tally.early += 1
    elif not ended:
        tally.broken += 1
        churn.fault(f"broken: {request} {result}")
    else:
        tally.answered += 1
        tally.recovered += result.recoveries > 0
    return result


async def ask(requester: Requester, draw: random.Random, whole: LlamaForCausalLM, churn: Churn, until: float) -> None:
    """Runs, one after the other."""
    while time.monotonic() < until:
        await one_run(requester, draw, whole, churn)


async def ask_over_http(url: str, draw: random.Random, whole: LlamaForCausalLM, churn: Churn, until: float) -> None:
    """Answers of the gateway, one after the other, from connections that are thrown away now and then."""
    tally = churn.http
    while time.monotonic() < until:
        # Let go of sooner than the gateway does (20 s): a request that crosses that on its way is nobody's fault.
        kept = aiohttp.TCPConnector(keepalive_timeout=5.0)
        async with aiohttp.ClientSession(url, connector=kept, timeout=aiohttp.ClientTimeout(300)) as http:
            for _ in range(draw.randint(1, 20)):
                if time.monotonic() >= until:
                    return
                try:
                    await _one_answer(http, draw, whole, churn)
                except (aiohttp.ClientError, TimeoutError) as error:
                    tally.broken += 1
                    churn.fault(f"the gateway broke off: {error!r}")
                    await asyncio.sleep(PAUSE_S)


async def _one_answer(http: aiohttp.ClientSession, draw: random.Random, whole: LlamaForCausalLM, churn: Churn) -> None:
    """Whole answers by llama-server's API, which tells their tokens; of streamed chats one is left in the middle."""
    tally, prompt = churn.http, [draw.randrange(VOCAB) for _ in range(draw.randint(1, 60))]
    if draw.random() < LEFT:
        tally.left += 1
        await _leave_in_the_middle(http, draw)
        return
    tally.asked += 1
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    async with http.post("/completion", json=body) as response:
        told = await response.json(content_type=None)
    if response.status != 200:
        name = str(told.get("error", {}).get("code") or response.status)
        tally.refused[name] += 1
        if response.status in (400, 500):
            tally.broken += 1
            churn.fault(f"the gateway answered {response.status}: {told}")
        await asyncio.sleep(PAUSE_S)
        return
    if not near_best(whole, prompt, told["tokens"]):
        tally.wrong += 1
        churn.fault(f"wrong through the gateway: {prompt} {told}")
    elif len(told["tokens"]) < TOKENS:
        tally.early += 1
    else:
        tally.answered += 1


async def _leave_in_the_middle(http: aiohttp.ClientSession, draw: random.Random) -> None:
    said = [{"role": "user", "content": "".join(draw.choices("abcdefgh ", k=draw.randint(1, 30)))}]
    body = {"messages": said, "max_tokens": 4 * TOKENS, "temperature": 0, "stream": True}
    async with http.post("/v1/chat/completions", json=body) as response:
        for _ in range(draw.randint(1, 8)):
            if not await response.content.readline():
                return
        response.close()


async def watch(
    pids: dict[str, int], folders: dict[str, Path], churn: Churn, begun: float, until: float, every_s: float, look: Look
) -> None:
    """Sizes, now and then, told to `look`."""
    while True:
        left = until - time.monotonic()
        await asyncio.sleep(max(0.05, min(every_s, left)))
        spent = time.monotonic() - begun
        churn.sizes.append((spent, {name: footprint(pid) for name, pid in pids.items()}))
        churn.disk = {name: await asyncio.to_thread(disk_bytes, folder) for name, folder in folders.items()}
        look(spent, churn)
        if left <= every_s:
            return


async def gateway(nodes: Nest, http: aiohttp.ClientSession) -> tuple[int, str, Path]:
    """A `swarm serve` of the nest: its process, where it answers, and its state folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = await nodes.ask("serve", "--host", "127.0.0.1", "--port", str(port), "--speculation", "plain")
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(GATEWAY_S):
        while True:
            try:
                async with http.get(f"{url}/healthz") as answer:
                    if answer.status == 200:
                        return command.pid, url, command.log.parent
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


async def churned(
    folder: Path,
    state: Path,
    seconds: float,
    seed: int,
    pause_s: float = 4.0,
    every_s: float = 60.0,
    look: Look = lambda spent, churn: None,
    through_gateway: bool = False,
) -> Churn:
    """Disturb a swarm of two holders a block for so long. Returns what happened. `pause_s`: mean, between two blows."""
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    churn = Churn()
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(nest(folder, state / "nodes"))
        first = await nodes.add(BLOCKS[0])
        await asyncio.gather(*(nodes.add(block) for block in (BLOCKS * 2)[1:]))
        requester = await stack.enter_async_context(
            await connected(nodes, state / "asker", draft="lm", draft_model=str(folder))
        )
        async with asyncio.timeout(PATIENCE_S):
            await all_serve(nodes, requester)
        pids, folders = {"node": first.pid, "asker": os.getpid()}, {"node": state / "nodes" / first.name}
        url = ""
        if through_gateway:
            http = await stack.enter_async_context(aiohttp.ClientSession())
            pids["gateway"], url, folders["gateway"] = await gateway(nodes, http)
        begun = time.monotonic()
        until = begun + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(disturb(nodes, random.Random(seed), churn, until, pause_s))
            for asker in range(ASKERS):
                group.create_task(ask(requester, random.Random(seed * 7 + asker), whole, churn, until))
            if url:
                group.create_task(ask_over_http(url, random.Random(seed * 7 - 1), whole, churn, until))
            group.create_task(watch(pids, folders, churn, begun, until, every_s, look))
        async with asyncio.timeout(PATIENCE_S):
            await all_serve(nodes, requester)  # in the end everybody who is there is seen by the asker
        quiet = await one_run(requester, random.Random(seed), whole, churn)
        if quiet is None or quiet.finish_reason != "length" or requester.desk.links or requester.desk.loops:
            churn.fault(f"the swarm did not come to rest: {quiet}, {len(requester.desk.links)} links")
            churn.ring.broken += 1
    return churn
