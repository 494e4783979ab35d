"""One run, a process of its ring killed in the middle, and what that cost: for tests and for the bench."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from swarm.base.address import format_address
from swarm.base.config import MemberConfig
from swarm.base.nodeid import id_text, parse_id_untrusted
from swarm.client.client import Requester, RequesterConfig
from swarm.net.channel.message import Message
from swarm.ring.frame import Answer
from swarm.run.api import CommittedTokens, Finished, Recovering, RingOpened, RunRequest, RunResult
from swarm.run.ring_client import RingLink
from tests.ring.nest import Nest, Node

MODES = ("plain", "chain", "tree", "stream")
Blow = Callable[[Node], None]


def kill(node: Node) -> None:
    """kill -9."""
    node.signal(signal.SIGKILL)


@dataclass
class Trial:
    """What one disturbed run did. Seconds from the blow to its end; None for what did not come.

    detect   the requester knows that a stage is lost
    plan     the new ring is chosen, and its opening under way
    form     the new ring stands, and what replacements miss is on its way to them
    token    the next token is there
    behind   how long the replacement's first frame waited there: for the rows that were replayed to it
    pause    between the last token before all that and the first one after
    """

    result: RunResult
    victim: Node | None = None
    place: int = -1
    held: int = 0
    detect: float | None = None
    plan: float | None = None
    form: float | None = None
    token: float | None = None
    behind: float | None = None
    pause: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass
class Blows:
    """Watches one run and strikes once `after` tokens are there and `wait_s` have passed."""

    nest: Nest
    requester: Requester
    request: RunRequest
    after: int
    place: int
    wait_s: float
    blow: Blow

    async def run(self) -> Trial:
        """Let it run to its end."""
        self.struck, self.at, self.victim, self.held = False, 0.0, None, 0
        timer: asyncio.TimerHandle | None = None
        marks: dict[str, float] = {}
        reasons: list[str] = []
        seen, link, last = 0, None, 0.0
        async with aclosing(self.requester.run(self.request)) as events:
            async for event in events:
                now = time.monotonic()
                if isinstance(event, RingOpened):
                    link = self.requester.desk.links.get(bytes.fromhex(event.run_id), link)
                    self._watch(link, marks)
                if isinstance(event, Recovering):
                    reasons.append(event.reason)
                    marks.setdefault("detect", now)
                if isinstance(event, CommittedTokens):
                    if "detect" in marks and "token" not in marks:
                        marks["token"] = now
                        marks["pause"] = now - last
                    last = now
                    seen += len(event.tokens)
                    if seen >= self.after and not self.struck:
                        self.struck, self.held = True, len(self.request.prompt_ids) + seen
                        timer = asyncio.get_running_loop().call_later(self.wait_s, self._strike, link)
                if isinstance(event, Finished):
                    if timer is not None:
                        timer.cancel()
                    return self._trial(event.result, marks, reasons)
        raise AssertionError("the run had no end")

    def _strike(self, link: RingLink | None) -> None:
        if link is not None:
            stages = link.opening.stages
            self.victim = self.nest.by_id(id_text(stages[self.place % len(stages)].node))
            self.at = time.monotonic()
            self.blow(self.victim)

    def _watch(self, link: RingLink | None, marks: dict[str, float]) -> None:
        """Note when this link opens a ring anew."""
        if link is None or getattr(link, "watched", False):
            return

        async def opening(*args: Any) -> None:
            marks["plan"] = time.monotonic()
            await whole(*args)
            marks["form"] = time.monotonic()

        def taking(answer: Answer, message: Message) -> None:
            if "plan" in marks and answer.epoch == link.opening.epoch:
                marks.setdefault("behind", max(queued for queued, _ in answer.timings) / 1e6)
            take(answer, message)

        whole, take = link.open, link.take_answer
        link.open, link.take_answer, link.watched = opening, taking, True  # type: ignore

    def _trial(self, result: RunResult, marks: dict[str, float], reasons: Sequence[str]) -> Trial:
        since = {name: at - self.at for name, at in marks.items() if at >= self.at > 0}
        return Trial(
            result, self.victim, self.place, self.held, since.get("detect"), since.get("plan"), since.get("form"),
            since.get("token"), marks.get("behind"), marks.get("pause"), tuple(reasons),
        )  # fmt: skip


async def connected(nest: Nest, state: Path, **more: Any) -> Requester:
    """A requester of this process."""
    member = MemberConfig(state, nest.models, nest.invite, lan=False, punch=False)
    return await Requester.connect(RequesterConfig(member, **more))


async def all_serve(nest: Nest, requester: Requester) -> None:
    """Wait until the requester knows every node of the nest, in its present life, as one that serves."""

    def serves(node: Node) -> bool:
        view = requester.gossip.member(parse_id_untrusted(node.id))
        if view is None or view.standing != "up" or view.record.state != "serving":
            return False
        return str(node.ready["advertise"]) in map(format_address, view.record.addresses)

    while not all(serves(node) for node in nest.nodes):
        await requester.gossip.wait_change()


def undisturbed(model: LlamaForCausalLM, request: RunRequest) -> list[int]:
    """What transformers generates, greedily, past end tokens."""
    n = request.max_tokens
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([list(request.prompt_ids)]), max_new_tokens=n, min_new_tokens=n, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    return [int(t) for t in out[0, len(request.prompt_ids) :]]


def random_request(rng: random.Random, vocabulary: int, tokens: int, longest: int = 200) -> RunRequest:
    """A random prompt in a random mode."""
    prompt = tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, longest)))
    mode: Any = rng.choice(MODES)
    return RunRequest(prompt, max_tokens=tokens, speculation=mode, draft=rng.choice(["suffix", "lm"]), ignore_eos=True)
