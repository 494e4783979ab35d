"""The terminal chat: commands, turns, Ctrl-C, what is printed where."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from swarm.base.errors import RunError, UsageError
from swarm.model.sampler import Sampling
from swarm.run.api import RunRequest, WaitingForCoverage
from swarm.terminal.chat import ChatConfig, chat, fit
from swarm.terminal.chat_commands import COMMANDS, Quit, Talk, act
from swarm.terminal.chat_screen import PlainScreen, TerminalScreen, line_reader, prompt_reader, settled
from tests.swarm.serve.tiny import TinyBackend


@pytest.fixture
def backend(tmp_path: Path) -> TinyBackend:
    ready = TinyBackend(tmp_path)
    ready.script = "It goes **round**."
    return ready


def said(lines: Iterable[str]) -> Callable[[], Awaitable[str]]:
    return line_reader(io.StringIO("".join(f"{line}\n" for line in lines)))


async def talk_plainly(backend: TinyBackend, *lines: str, config: ChatConfig | None = None) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    await chat(backend, config or ChatConfig(), PlainScreen(out, err), said(lines))
    return out.getvalue(), err.getvalue()


def talk() -> Talk:
    return Talk("tiny-random", RunRequest(prompt_ids=(0,), max_tokens=20))


async def test_answers_go_out_and_the_conversation_grows(backend: TinyBackend) -> None:
    out, err = await talk_plainly(backend, "one?", "", "two?", config=ChatConfig(system="Be brief."))
    assert out == "It goes **round**.\n" * 2 and err == ""
    prompt = backend.decode(backend.requests[-1].prompt_ids)
    for text in ("Be brief.", "one?", "It goes **round**.", "two?"):
        assert text in prompt


async def test_each_turn_has_its_own_seed(backend: TinyBackend) -> None:
    request = RunRequest(prompt_ids=(0,), max_tokens=5, sampling=Sampling(temperature=1.0, seed=40))
    await talk_plainly(backend, "a", "b", config=ChatConfig(request=request))
    assert [run.sampling.seed for run in backend.requests] == [40, 41]


async def test_commands_do_not_reach_the_model(backend: TinyBackend) -> None:
    out, err = await talk_plainly(backend, "/help", "/model", "/ring", "/stats", "/quit", "unheard")
    assert out == "" and backend.requests == []
    assert "/save FILE" in err and "2 layers" in err and "no ring" in err


async def test_two_slashes_begin_a_message(backend: TinyBackend) -> None:
    await talk_plainly(backend, "//help me")
    assert "/help me" in backend.decode(backend.requests[0].prompt_ids)
    assert "//help" not in backend.decode(backend.requests[0].prompt_ids)


def test_a_wait_for_nodes_is_shown() -> None:
    event = WaitingForCoverage("layers 2-3 are held by nobody; need one more node with about 0.1 GB", 30.0)
    out, err, drawn = io.StringIO(), io.StringIO(), io.StringIO()
    PlainScreen(out, err).waiting(event)
    screen = TerminalScreen(Console(file=drawn, force_terminal=True, width=100))
    screen.opening()
    screen.waiting(event)
    screen.closed(talk(), stopped=True)
    assert err.getvalue() == f"waiting for coverage: {event.reason}\n" and not out.getvalue()
    assert "waiting for coverage: layers 2-3" in drawn.getvalue()


async def test_a_question_that_failed_can_be_asked_again(backend: TinyBackend) -> None:
    backend.fail = RunError("no other route")
    _, err = await talk_plainly(backend, "one?")
    assert "no other route" in err
    backend.fail = None
    await talk_plainly(backend, "one?")
    assert backend.decode(backend.requests[-1].prompt_ids).count("one?") == 1


async def test_ctrl_c_stops_the_answer_only(backend: TinyBackend) -> None:
    backend.gate = asyncio.Event()
    backend.gate.set()

    def interrupt(count: int) -> None:
        if count == 7 and len(backend.requests) == 1:
            assert backend.gate is not None
            backend.gate.clear()
            os.kill(os.getpid(), signal.SIGINT)
            asyncio.get_running_loop().call_later(0.2, backend.gate.set)

    backend.on_token = interrupt
    out, _ = await talk_plainly(backend, "one?", "two?")
    assert out == "It goes\nIt goes **round**.\n"
    assert backend.cancelled == 1 and backend.open_runs == 0
    assert "It goes" in backend.decode(backend.requests[-1].prompt_ids)  # what was said stays said


async def test_ctrl_c_at_the_prompt_does_not_end_the_chat(backend: TinyBackend) -> None:
    lines = iter([KeyboardInterrupt(), "one?", EOFError()])

    async def read() -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    out, err = io.StringIO(), io.StringIO()
    await chat(backend, ChatConfig(), PlainScreen(out, err), read)
    assert out.getvalue() and "Ctrl-D" in err.getvalue()


def test_old_messages_are_dropped_when_the_context_is_full(backend: TinyBackend) -> None:
    state = talk()
    for n in range(6):
        state.messages += [{"role": "user", "content": f"q{n}" * 8}, {"role": "assistant", "content": "a" * 16}]
    state.messages.append({"role": "user", "content": "last"})
    request, dropped = fit(state, backend)
    assert dropped and dropped % 2 == 0
    assert len(request.prompt_ids) + request.max_tokens <= backend.manifest.context
    text = backend.decode(request.prompt_ids)
    assert "last" in text and "q0" not in text and "q5" in text


def test_a_message_that_cannot_fit_is_said_to_be_too_long(backend: TinyBackend) -> None:
    state = talk()
    state.messages.append({"role": "user", "content": "x" * 400})
    with pytest.raises(UsageError, match="context of 256 tokens"):
        fit(state, backend)


def test_commands(backend: TinyBackend, tmp_path: Path) -> None:
    state = talk()
    assert act(state, "/system Speak plainly.", backend) == "system message: Speak plainly."
    assert state.system == "Speak plainly." and act(state, "/system -", backend) and state.system is None
    assert "temperature 0.7" in str(act(state, "/set temperature 0.7", backend))
    assert state.request.sampling.temperature == 0.7
    for bad in ("/set temperature hot", "/set colour red", "/set temperature -1", "/reste", "/save", "/"):
        with pytest.raises(UsageError):
            act(state, bad, backend)
    with pytest.raises(UsageError, match="did you mean /reset"):
        act(state, "/reste", backend)
    assert isinstance(act(state, "/quit", backend), Quit)
    assert act(state, "hello", backend) is None


def test_saving(backend: TinyBackend, tmp_path: Path) -> None:
    state = talk()
    state.messages = [{"role": "user", "content": "ça va?"}, {"role": "assistant", "content": "oui"}]
    act(state, f"/save {tmp_path / 'c.json'}", backend)
    assert json.loads((tmp_path / "c.json").read_text("utf-8"))["messages"] == state.messages
    act(state, f"/save {tmp_path / 'c.md'}", backend)
    assert "ça va?" in (tmp_path / "c.md").read_text("utf-8")
    with pytest.raises(UsageError, match="there already"):
        act(state, f"/save {tmp_path / 'c.md'}", backend)
    with pytest.raises(UsageError, match="cannot write"):
        act(state, f"/save {tmp_path / 'none' / 'c.md'}", backend)
    assert act(state, "/reset", backend) == "2 messages forgotten" and state.messages == []


async def test_a_terminal_shows_markdown_speed_and_ring(backend: TinyBackend) -> None:
    backend.script = "First **bold** words.\n\nSecond paragraph:\n\n```python\nx = 1\n\ny = 2\n```\n\nEnd."
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, color_system="standard")
    await chat(backend, ChatConfig(), TerminalScreen(console), said(["one?", "/stats"]))
    text = out.getvalue()
    assert "**" not in text and "bold" in text and "aaaaaaaa 0-0 → bbbbbbbb 1-1" in text
    assert text.count("Second paragraph:") >= 1 and "tokens/s" in text and "receipt:" in text


@given(st.lists(st.sampled_from(["a\n", "\n", "```\n", "- x\n", "1. y\n", "  z\n", "**b**\n"]), max_size=30))
def test_what_is_settled_never_changes(parts: list[str]) -> None:
    """Growing text keeps its settled blocks, and never settles inside a code fence."""
    text, before = "", 0
    for part in parts:
        text += part
        now = settled(text)
        assert now >= before and text[:now].count("```") % 2 == 0
        before = now


async def test_the_line_editor_takes_several_lines_and_remembers(tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        read = prompt_reader(history)
        keys.send_text("one\x1b\rtwo\r")
        assert await read() == "one\ntwo"
        keys.send_text("\x1b[A\x1b[A\r")
        assert await read() == "one\ntwo"
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            await read()
        keys.send_text("half\x03")
        with pytest.raises(KeyboardInterrupt):
            await read()
    assert history.stat().st_mode & 0o777 == 0o600


def test_every_command_is_explained(backend: TinyBackend) -> None:
    told = act(talk(), "/help", backend)
    assert all(f"/{name}" in str(told) for name in COMMANDS)
