"""What a program may ask for with one answer: keywords of `Client.generate`, checked and made into a run's request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from swarm.base.errors import UsageError
from swarm.base.option import declared
from swarm.model.constraint import Constraint
from swarm.model.sampling import Sampling
from swarm.run.api import Draft, RunRequest, Speculation

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""One user's message, or a conversation as chat templates take it: dicts with "role" and "content"."""


class AnswerOptions(TypedDict, total=False):
    """Keywords of `generate`, `stream` and `structured`; all may be left away.

    max_tokens         exact, unless a stop or end token comes first; 256
    system             system message, where the prompt is a string
    raw                give the prompt to the model as it is, without the chat template
    stop               texts that end the answer and are not part of it
    ignore_eos         go on past end tokens
    temperature        0 (the usual) is greedy; `top_p`, `top_k`, `min_p`, `repetition_penalty` as usual
    seed               same seed, same answer
    regex, grammar     hold the answer to a regular expression (Rust's) or a grammar (GBNF or Lark)
    speculation, draft, wire, private, private_text, witnesses, patience_s   as `swarm generate --help-all` says, and
                       within the same bounds
    receipt            where to write the receipt; False: leave none; default: the state folder
    """

    max_tokens: int
    system: str
    raw: bool
    stop: str | Sequence[str]
    ignore_eos: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    regex: str
    grammar: str
    speculation: Speculation
    draft: Draft
    wire: str
    private: int
    private_text: bool
    witnesses: int
    patience_s: float
    receipt: Path | str | bool


_SAMPLING = frozenset(name for name, _, _ in declared(Sampling))
_REQUEST = frozenset(name for name, _, _ in declared(RunRequest)) - {"stop", "receipt"}
"""Keywords that are handed on as they are: the options that `Sampling` and `RunRequest` declare."""


def request_of(
    options: AnswerOptions, prompt_ids: tuple[int, ...], constraint: Constraint | None, draft: Draft
) -> RunRequest:
    """The run that is asked for. `constraint`: what a schema asks for. `draft`: where `options` name none.

    Raises UsageError for what cannot be meant.
    """
    words = dict(options)
    held = [constraint] if constraint is not None else []
    if "regex" in options:
        held.append(Constraint("regex", options["regex"]))
    if "grammar" in options:
        from swarm.model.grammars import from_grammar

        held.append(from_grammar(options["grammar"]))
    if len(held) > 1:
        raise UsageError("expected one of a schema, regex and grammar, found several: an answer has one form")
    sampling: dict[str, Any] = {name: words[name] for name in _SAMPLING if name in words}
    rest: dict[str, Any] = {"draft": draft} | {name: words[name] for name in _REQUEST if name in words}
    stop = options.get("stop", ())
    return RunRequest(
        prompt_ids=prompt_ids,
        sampling=Sampling(constraint=held[0] if held else None, **sampling),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        receipt=options.get("receipt") is not False,
        **rest,
    )


def receipt_path(options: AnswerOptions) -> Path | None:
    """Where the receipt goes; None: the state folder, or nowhere."""
    given = options.get("receipt")
    return None if given is None or isinstance(given, bool) else Path(given)


def conversation(prompt: Prompt, system: str | None) -> list[Message]:
    """The messages that a prompt stands for. Raises UsageError for an empty one, and for two system messages."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError("expected a prompt, found an empty one; give some text")
        told: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*told, {"role": "user", "content": prompt}]
    given: object = prompt
    if isinstance(given, bytes | Mapping) or not isinstance(given, Sequence):
        raise UsageError(f"expected a prompt as text, or messages with role and content, found {prompt!r}")
    if not prompt:
        raise UsageError("expected at least one message, found none")
    if any(
        not isinstance(each, Mapping) or "role" not in each or not {"content", "tool_calls"} & set(each)
        for each in prompt
    ):
        raise UsageError("expected messages with role and content, found one of another shape")
    if system is not None:
        raise UsageError("expected the system message among the messages, found it as a keyword too")
    return list(prompt)
