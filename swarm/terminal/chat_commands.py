"""The slash commands of `swarm chat`, and the state that they act on. No terminal here."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swarm.base.errors import UsageError
from swarm.run.api import RunRequest, RunResult, StageInfo
from swarm.serve.backend import Backend


@dataclass
class Talk:
    """A conversation. `said`: the answer being written; `asked`: answers begun; `tokens`: all answers together."""

    model: str
    request: RunRequest
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    ring: tuple[StageInfo, ...] = ()
    said: str = ""
    asked: int = 0
    tokens: int = 0
    seconds: float = 0.0
    passes: int = 0
    recoveries: int = 0
    last: RunResult | None = None

    def finished(self, result: RunResult) -> None:
        """Take in the result of an answer."""
        self.last, self.ring = result, result.ring
        self.seconds += result.seconds
        self.passes += result.passes
        self.recoveries += result.recoveries


class Quit:
    """The chat is over."""


Command = Callable[[Talk, str, Backend], str | Quit]


def act(talk: Talk, line: str, backend: Backend) -> str | Quit | None:
    """Carry out a command; None when `line` is not one (a line that begins with // is a message). Raises UsageError."""
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, _, rest = line[1:].strip().partition(" ")
    entry = COMMANDS.get(name.lower())
    if entry is None:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise UsageError(f"there is no command /{name[:40]}; {hint} (write // to begin a message with /)")
    return entry[1](talk, rest.strip(), backend)


def _help(talk: Talk, rest: str, backend: Backend) -> str:
    width = max(len(usage) for usage, _, _ in COMMANDS.values())
    lines = [f"/{usage:<{width}}  {text}" for usage, _, text in COMMANDS.values()]
    return "\n".join([*lines, "", "Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D ends."])


def _reset(talk: Talk, rest: str, backend: Backend) -> str:
    count = len(talk.messages)
    talk.messages.clear()
    return f"{count} messages forgotten" if count else "there was nothing to forget"


def _system(talk: Talk, rest: str, backend: Backend) -> str:
    if rest:
        talk.system = None if rest == "-" else rest
    return f"system message: {talk.system}" if talk.system else "no system message; /system TEXT sets one, - removes it"


def _save(talk: Talk, rest: str, backend: Backend) -> str:
    if not rest:
        raise UsageError("expected a file name; write /save chat.md, or /save chat.json")
    path = Path(rest).expanduser()
    text = as_json(talk) if path.suffix == ".json" else as_markdown(talk)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already; choose another name") from None
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc
    return f"saved to {path}"


def _model(talk: Talk, rest: str, backend: Backend) -> str:
    facts = backend.manifest
    return f"{facts.model}: {facts.n_layers} layers, context {facts.context} tokens, digest {facts.digest[:16]}"


def _ring(talk: Talk, rest: str, backend: Backend) -> str:
    if not talk.ring:
        return "no answer yet, so no ring"
    lines = []
    for stage in talk.ring:
        rtt = "" if stage.rtt_ms is None else f", {stage.rtt_ms:.0f} ms away ({stage.edge})"
        layers = f"layers {stage.layers[0]}-{stage.layers[1] - 1}"
        lines.append(f"{stage.node[:8]}  {layers:<14}  {stage.device}, {stage.compute_ms:.1f} ms per pass{rtt}")
    return "\n".join(lines)


def _stats(talk: Talk, rest: str, backend: Backend) -> str:
    if not talk.asked:
        return "no answer yet"
    lines = [
        f"{talk.asked} answers, {talk.tokens} tokens" + (f", {talk.recoveries} recoveries" if talk.recoveries else "")
    ]
    if talk.last is not None:
        lines += [summary(talk.last), *([f"receipt: {talk.last.receipt}"] if talk.last.receipt else [])]
    return "\n".join(lines)


def _set(talk: Talk, rest: str, backend: Backend) -> str:
    name, _, value = rest.partition(" ")
    sampling = talk.request.sampling
    try:
        match name:
            case "max-tokens":
                talk.request = replace(talk.request, max_tokens=int(value))
            case "temperature":
                talk.request = replace(talk.request, sampling=replace(sampling, temperature=float(value)))
            case "top-p":
                talk.request = replace(talk.request, sampling=replace(sampling, top_p=float(value)))
            case "seed":
                talk.request = replace(talk.request, sampling=replace(sampling, seed=int(value)))
            case "":
                pass
            case _:
                raise UsageError(f"expected max-tokens, temperature, top-p or seed, found {name[:40]!r}")
    except ValueError:
        raise UsageError(f"expected a number for {name}, found {value[:40]!r}") from None
    now = talk.request.sampling
    return (
        f"max-tokens {talk.request.max_tokens}, temperature {now.temperature:g}, top-p {now.top_p:g}, seed {now.seed}"
    )


def _quit(talk: Talk, rest: str, backend: Backend) -> Quit:
    return Quit()


COMMANDS: Mapping[str, tuple[str, Command, str]] = {
    "help": ("help", _help, "these lines"),
    "reset": ("reset", _reset, "forget the conversation"),
    "system": ("system [TEXT|-]", _system, "show, set or remove the system message"),
    "set": ("set [NAME VALUE]", _set, "max-tokens, temperature, top-p, seed"),
    "save": ("save FILE", _save, "write the conversation as Markdown, or as JSON to a .json file"),
    "model": ("model", _model, "facts of the model"),
    "ring": ("ring", _ring, "who computed the last answer"),
    "stats": ("stats", _stats, "speed of the last answer, and its receipt"),
    "quit": ("quit", _quit, "end the chat"),
}


def summary(result: RunResult) -> str:
    """One line about an answer."""
    parts = [f"{result.new_tokens} tokens", f"{result.tokens_per_second:.1f} tokens/s"]
    if result.passes:
        parts.append(f"{result.tokens_per_pass:.1f} per pass")
    if result.plain_estimate_tokens_per_second:
        parts.append(f"{result.tokens_per_second / result.plain_estimate_tokens_per_second:.1f}x plain")
    if result.recoveries:
        parts.append(f"{result.recoveries} recoveries")
    if result.receipt_unwritten:
        parts.append(f"no receipt: {result.receipt_unwritten}")
    if result.finish_reason == "length":
        parts.append("cut at max-tokens")
    elif result.finish_reason == "swarm_incomplete":
        parts.append("cut short: the swarm lost layers")
    return ", ".join(parts)


def as_markdown(talk: Talk) -> str:
    """The conversation for people."""
    parts = [f"# Chat with {talk.model}\n"]
    if talk.system:
        parts.append(f"**System:** {talk.system}\n")
    for message in talk.messages:
        who = "You" if message["role"] == "user" else talk.model
        parts.append(f"## {who}\n\n{message['content']}\n")
    return "\n".join(parts)


def as_json(talk: Talk) -> str:
    """The conversation for programs: OpenAI's messages."""
    system = [{"role": "system", "content": talk.system}] if talk.system else []
    return json.dumps({"model": talk.model, "messages": [*system, *talk.messages]}, ensure_ascii=False, indent=2) + "\n"
