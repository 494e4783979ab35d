"""What `swarm generate` does: one run, its text to stdout, its story to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from swarm.base.config import MemberConfig
from swarm.base.errors import RunError, UsageError
from swarm.base.events import Report
from swarm.base.option import build, option
from swarm.base.paths import file_to_write, read_path
from swarm.cli.common import say
from swarm.cli.early import check_draft
from swarm.client.config import RequesterConfig
from swarm.client.route_policy import RouteRules
from swarm.model.constraint import Constraint
from swarm.model.sampling import OWN, Sampling, recommended, say_settings
from swarm.run.api import (
    CommittedTokens,
    Finished,
    PromptRead,
    Recovering,
    RingOpened,
    RunRequest,
    RunResult,
    StageInfo,
    WaitingForCoverage,
)

ACCEPTED = "\x1b[32m"
CORRECTED = "\x1b[33m"
PLAIN = "\x1b[0m"


@dataclass(frozen=True)
class ConstraintOptions:
    """What the answer is held to: one of these, or nothing."""

    json_schema: Path | None = option(
        None, "hold the answer to JSON that fits the schema in this file", "FILE", read=read_path, group="text"
    )
    regex: str | None = option(None, "hold the answer to a regular expression (Rust's syntax)", "R", group="text")
    grammar: Path | None = option(
        None, "hold the answer to a grammar: llama.cpp's GBNF, or Lark", "FILE", read=read_path, group="text"
    )

    @property
    def constraint(self) -> Constraint | None:
        """Read from its file. Raises UsageError."""
        given = {"--json-schema": self.json_schema, "--regex": self.regex, "--grammar": self.grammar}
        if len(found := [name for name, value in given.items() if value is not None]) > 1:
            raise UsageError(f"expected one of {', '.join(given)}, found {' and '.join(found)}: an answer has one form")
        if self.regex is not None:
            return Constraint("regex", self.regex)
        path = self.json_schema if self.grammar is None else self.grammar
        if path is None:
            return None
        from swarm.model.grammars import from_grammar, from_schema

        try:
            text = path.read_text("utf-8")
            return from_grammar(text) if self.grammar is not None else from_schema(json.loads(text))
        except OSError as error:
            raise UsageError(f"expected a readable file, found {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            what = "a grammar" if self.grammar is not None else "JSON"
            raise UsageError(f"expected {what} in UTF-8 in {path}, found something else: {error}") from error


AWAITED = "loading the tokenizer and what drafts, and entering the swarm"
"""Said before any of it begins: it takes seconds, of which importing torch is the first."""


@dataclass(frozen=True)
class GenerateConfig:
    """`swarm generate`: what is asked (`request`), who asks (`asked`), and what is shown.

    json     the result alone, as JSON, instead of streaming text
    color    mark drafted and corrected tokens on stdout
    own      sample as the model's makers recommend, where they do
    """

    asked: RequesterConfig
    request: RunRequest
    prompt: str = option(
        "-", "the prompt, or - to read it from stdin (default)", "PROMPT", name="prompt", optional=True
    )
    system: str | None = option(None, "system message of the chat template", "TEXT", group="text", everyday=True)
    raw: bool = option(
        False, "give the prompt to the model as it is, without the chat template", group="text", everyday=True
    )
    receipt: Path | None = option(
        None,
        "where to write it (default: the state folder)",
        "PATH",
        read=file_to_write,
        group="receipt",
        everyday=True,
    )
    json: bool = option(
        False, "print one JSON object at the end instead of streaming text", group="output", everyday=True
    )
    color: str = option(
        "auto",
        "colour tokens: drafted and accepted, or corrected (default: %(default)s)",
        choices=("auto", "always", "never"),
        group="output",
    )

    own: bool = False

    @property
    def colours(self) -> bool:
        """Whether tokens are coloured on stdout."""
        return self.color == "always" or (self.color == "auto" and sys.stdout.isatty())

    @staticmethod
    def from_arguments(
        arguments: argparse.Namespace, member: MemberConfig, prompt: str, rules: RouteRules
    ) -> GenerateConfig:
        """Built once, from the parsed command line. Raises UsageError."""
        given = vars(arguments)
        check_draft(arguments.draft, arguments.draft_model, arguments.draft_gpu)
        if arguments.receipt is not None and arguments.no_receipt:
            raise UsageError("expected --receipt PATH or --no-receipt, found both")
        sampling = build(Sampling, given, constraint=build(ConstraintOptions, given).constraint)
        request = build(RunRequest, given, prompt_ids=(0,), sampling=sampling)
        asked = build(RequesterConfig, given, member=member, draft=request.draft, rules=rules, log=None)
        own = not any(name in given for name in OWN)
        return build(GenerateConfig, given, asked=asked, request=request, prompt=prompt, own=own)


def check(config: GenerateConfig) -> None:
    """Look at what the answer is held to before anything is loaded and anybody asked. Raises SwarmError, which is then
    all that is said."""
    if (held_to := config.request.sampling.constraint) is not None:
        from swarm.model.compiling import require_readable

        require_readable(held_to)


async def ask(config: GenerateConfig, report: Report) -> RunResult:
    """Connect, run, print. Raises SwarmError."""
    import asyncio

    from swarm.client.client import Requester

    async with await Requester.connect(config.asked, report) as requester:
        if not config.json and config.request.speculation != "plain":
            say(requester.drafts)
        if config.raw:
            prompt_ids = requester.encode(config.prompt)
        else:
            system = [{"role": "system", "content": config.system}] if config.system else []
            said = [*system, {"role": "user", "content": config.prompt}]
            prompt_ids = await asyncio.to_thread(requester.encode_chat, said)
        request = replace(config.request, prompt_ids=tuple(prompt_ids))
        if config.own and (own := recommended(request.sampling, requester.generation_defaults)) != request.sampling:
            request = replace(request, sampling=own)
            if not config.json:
                say(f"sampling as the model's makers recommend: {say_settings(own)} (--temperature 0: the likeliest)")
        result: RunResult | None = None
        async with aclosing(requester.run(request, receipt=config.receipt)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    result = event.result
                else:
                    _show(event, config)
    if result is None:
        raise RunError("the run ended without a result; run it again, and with --speculation plain if it recurs")
    if not config.json:
        print(flush=True)
        say(summary(result))
    return result


def _show(
    event: WaitingForCoverage | RingOpened | PromptRead | CommittedTokens | Recovering, config: GenerateConfig
) -> None:
    match event:
        case WaitingForCoverage():
            say(f"waiting for coverage: {event.reason}")
        case RingOpened():
            if not config.json:
                say(ring_line(event.ring))
        case Recovering():
            what = "is leaving" if event.leaving else f"is lost ({event.reason})"
            say(f"stage {event.lost} {what}; looking for another route")
        case CommittedTokens():
            if not config.json:
                sys.stdout.write(coloured(event) if config.colours else event.text)
                sys.stdout.flush()


def coloured(event: CommittedTokens) -> str:
    """The text of a commit: green where drafts foresaw it, yellow where the target corrected them.

    Text is coloured by commit: its last token is the target's own word, all before it were drafted.
    """
    if not event.text:
        return ""
    color = ACCEPTED if event.drafted and all(event.drafted) else CORRECTED
    return f"{color}{event.text}{PLAIN}"


def ring_line(ring: tuple[StageInfo, ...]) -> str:
    """The ring in one line."""
    stages = " -> ".join(f"{s.node[:8]} [{s.layers[0]}-{s.layers[1] - 1}]" for s in ring)
    return f"ring: you -> {stages} -> you"


def summary(result: RunResult) -> str:
    """The line that ends a run."""
    parts = [f"{result.new_tokens} tokens", f"{result.tokens_per_second:.1f} tokens/s", f"{result.passes} passes"]
    parts.append(f"{result.tokens_per_pass:.2f} tokens per pass")
    if result.rows_sent and result.drafter != "none":
        parts.append(f"acceptance {result.acceptance:.2f} ({result.drafter})")
    if result.plain_estimate_tokens_per_second:
        gain = result.tokens_per_second / result.plain_estimate_tokens_per_second
        parts.append(f"about {gain:.1f}x plain (a pass takes {result.pass_ms:.0f} ms)")
    if result.recoveries:
        parts.append(f"{result.recoveries} recoveries")
    lines = [", ".join(parts)]
    if result.receipt:
        lines.append(f"receipt: {result.receipt}   (check it: swarm verify {result.receipt})")
    if result.receipt_unwritten:
        lines.append(f"no receipt: {result.receipt_unwritten}")
    return "\n".join(lines)
