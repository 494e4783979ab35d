"""`swarm chat`: a conversation in the terminal. The loop, and what one turn does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from swarm.base.errors import SwarmError, UsageError
from swarm.base.signals import on_signals
from swarm.model.sampler import Sampling
from swarm.run.api import CommittedTokens, Finished, Recovering, RingOpened, RunRequest, WaitingForCoverage
from swarm.serve.backend import Backend
from swarm.terminal.chat_commands import Quit, Talk, act


@dataclass(frozen=True)
class ChatConfig:
    """What every answer is asked for with. `request`: all but the prompt; `system`: None for none."""

    request: RunRequest = field(default_factory=lambda: RunRequest(prompt_ids=(0,), max_tokens=1024))
    system: str | None = None


class Screen(Protocol):
    """Where a chat is shown (see swarm.terminal.chat_screen)."""

    def say(self, text: str) -> None:
        """A line from the program."""

    def fail(self, text: str) -> None:
        """A line about something that went wrong."""

    def opening(self) -> None:
        """An answer is awaited."""

    def waiting(self, event: WaitingForCoverage) -> None: ...

    def opened(self, event: RingOpened) -> None: ...

    def more(self, event: CommittedTokens, now: float) -> None: ...

    def recovering(self, event: Recovering) -> None: ...

    def closed(self, talk: Talk, stopped: bool) -> None:
        """The answer is over; `talk.last` is its result unless it was stopped."""


Read = Callable[[], Awaitable[str]]


async def chat(backend: Backend, config: ChatConfig, screen: Screen, read: Read) -> None:
    """Talk until `read` raises EOFError or /quit. `read` gives one message; it may raise KeyboardInterrupt."""
    talk = Talk(backend.manifest.model, config.request, config.system)
    while True:
        try:
            line = await read()
        except KeyboardInterrupt:
            screen.say("Ctrl-D or /quit ends the chat.")
            continue
        except EOFError:
            return
        if not line.strip():
            continue
        try:
            done = act(talk, line, backend)
        except UsageError as exc:
            screen.fail(str(exc))
            continue
        if isinstance(done, Quit):
            return
        if done is not None:
            screen.say(done)
            continue
        await turn(talk, line.removeprefix("/") if line.startswith("//") else line, backend, screen)


async def turn(talk: Talk, text: str, backend: Backend, screen: Screen) -> None:
    """One question and its answer. Ctrl-C ends the answer and keeps what was said so far."""
    talk.messages.append({"role": "user", "content": text})
    answer = asyncio.create_task(_answer(talk, backend, screen))
    with on_signals(answer.cancel, (signal.SIGINT,)):
        await asyncio.wait({answer})
    if answer.cancelled():
        _keep(talk)
        screen.closed(talk, stopped=True)
    elif (error := answer.exception()) is not None:
        if not isinstance(error, SwarmError):
            raise error
        screen.closed(talk, stopped=True)
        screen.fail(str(error))
        _keep(talk)
    else:
        _keep(talk)
        screen.closed(talk, stopped=False)


def _keep(talk: Talk) -> None:
    """What was said belongs to the conversation; a question without any answer does not, so it can be asked again."""
    if talk.said:
        talk.messages.append({"role": "assistant", "content": talk.said})
    else:
        talk.messages.pop()


async def _answer(talk: Talk, backend: Backend, screen: Screen) -> None:
    talk.said = ""
    screen.opening()
    request, dropped = await asyncio.to_thread(fit, talk, backend)
    if dropped:
        screen.say(f"the conversation outgrew the context: its first {dropped} messages are left out")
    talk.asked += 1
    async with aclosing(cast(Any, backend.run(request))) as events:
        async for event in cast(AsyncIterator[Any], events):
            match event:
                case WaitingForCoverage():
                    screen.waiting(event)
                case RingOpened():
                    talk.ring = event.ring
                    screen.opened(event)
                case CommittedTokens():
                    talk.said += event.text
                    talk.tokens += len(event.tokens)
                    screen.more(event, time.monotonic())
                case Recovering():
                    screen.recovering(event)
                case Finished(result):
                    talk.finished(result)


def fit(talk: Talk, backend: Backend) -> tuple[RunRequest, int]:
    """The request for the conversation so far, and how many of its first messages had to be left out.

    Raises UsageError when the last message alone does not fit.
    """
    context = backend.manifest.context
    messages = talk.messages
    for first in range(0, len(messages), 2):
        kept = messages[first:]
        system = [{"role": "system", "content": talk.system}] if talk.system else []
        prompt = tuple(backend.encode_chat([*system, *kept]))
        room = context - len(prompt)
        if room >= min(talk.request.max_tokens, context // 4) or (len(kept) == 1 and room > 0):
            sampling: Sampling = talk.request.sampling
            # Another seed each turn: asking again should be able to give another answer.
            seeded = replace(sampling, seed=(sampling.seed + talk.asked) % 2**63)
            limit = min(talk.request.max_tokens, room)
            return replace(talk.request, prompt_ids=prompt, max_tokens=limit, sampling=seeded), first
    raise UsageError(f"expected a message that fits the context of {context} tokens, found a longer one; shorten it")
