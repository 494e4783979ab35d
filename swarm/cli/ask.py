"""What `swarm generate` does: one run, its text to stdout, its story to stderr."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from swarm.base.config import MemberConfig
from swarm.base.errors import RunError, UsageError
from swarm.base.events import Report
from swarm.cli.common import keep_receipts_s, say
from swarm.client.route_policy import RouteRules
from swarm.model.constraint import Constraint
from swarm.model.sampler import Sampling
from swarm.run.api import (
    CommittedTokens,
    Draft,
    Finished,
    Recovering,
    RingOpened,
    RunRequest,
    RunResult,
    Speculation,
    StageInfo,
    WaitingForCoverage,
)

ACCEPTED = "\x1b[32m"
CORRECTED = "\x1b[33m"
PLAIN = "\x1b[0m"


@dataclass(frozen=True)
class GenerateConfig:
    """`swarm generate`, apart from the swarm that it asks.

    draft_model, draft_gpu   another drafter than the shipped one, and where it computes
    rules                    whom the request may pass through
    color                    mark drafted and corrected tokens on stdout
    """

    member: MemberConfig
    prompt: str
    raw: bool
    system: str | None
    request: RunRequest
    draft_model: str | None
    draft_gpu: int | None
    receipt: Path | None
    color: bool
    stream: bool
    rules: RouteRules = RouteRules()
    keep_receipts_s: float | None = None

    @staticmethod
    def from_arguments(
        arguments: argparse.Namespace, member: MemberConfig, prompt: str, rules: RouteRules
    ) -> GenerateConfig:
        """Built once, from the parsed command line. Raises UsageError."""
        mode: Speculation = arguments.speculation
        draft: Draft = arguments.draft
        if arguments.draft_model is not None and draft in ("none", "suffix"):
            raise UsageError(f"expected --draft lm or auto with --draft-model, found --draft {draft}")
        if arguments.receipt is not None and arguments.no_receipt:
            raise UsageError("expected --receipt PATH or --no-receipt, found both")
        request = RunRequest(
            prompt_ids=(0,),
            max_tokens=arguments.max_tokens,
            sampling=Sampling(
                temperature=arguments.temperature,
                top_p=arguments.top_p,
                top_k=arguments.top_k,
                min_p=arguments.min_p,
                repetition_penalty=arguments.repetition_penalty,
                seed=arguments.seed,
                constraint=_constraint(arguments),
            ),
            stop=tuple(arguments.stop),
            ignore_eos=arguments.ignore_eos,
            speculation=mode,
            draft="none" if mode == "plain" else draft,
            wire=arguments.wire,
            patience_s=arguments.patience,
            private=arguments.private,
            private_text=arguments.private_text,
            receipt=not arguments.no_receipt,
            witnesses=arguments.witness,
        )
        return GenerateConfig(
            member=member,
            prompt=prompt,
            raw=arguments.raw,
            system=arguments.system,
            request=request,
            draft_model=arguments.draft_model,
            draft_gpu=arguments.draft_gpu,
            receipt=arguments.receipt,
            color=_wants_color(arguments.color, sys.stdout),
            stream=not arguments.json,
            rules=rules,
            keep_receipts_s=keep_receipts_s(arguments),
        )


def _constraint(arguments: argparse.Namespace) -> Constraint | None:
    """What the answer is held to by the command line. Raises UsageError."""
    given = {"--json-schema": arguments.json_schema, "--regex": arguments.regex, "--grammar": arguments.grammar}
    if len(found := [name for name, value in given.items() if value is not None]) > 1:
        raise UsageError(f"expected one of {', '.join(given)}, found {' and '.join(found)}: an answer has one form")
    if arguments.regex is not None:
        return Constraint("regex", arguments.regex)
    path: Path | None = arguments.json_schema or arguments.grammar
    if path is None:
        return None
    from swarm.model.grammars import from_grammar, from_schema

    try:
        text = path.read_text("utf-8")
        return from_grammar(text) if arguments.grammar is not None else from_schema(json.loads(text))
    except OSError as error:
        raise UsageError(f"expected a readable file, found {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"expected JSON in UTF-8 in {path}, found other bytes: {error}") from error


async def ask(config: GenerateConfig, report: Report) -> RunResult:
    """Connect, run, print. Raises SwarmError."""
    from dataclasses import replace

    from swarm.client.client import Requester, RequesterConfig

    member = RequesterConfig(
        config.member,
        draft_model=config.draft_model,
        draft_gpu=config.draft_gpu,
        draft=config.request.draft,
        keep_receipts_s=config.keep_receipts_s,
        rules=config.rules,
    )
    async with await Requester.connect(member, report) as requester:
        if config.stream and config.request.speculation != "plain":
            say(f"drafts: {requester.drafts}")
        if config.raw:
            prompt_ids = requester.encode(config.prompt)
        else:
            system = [{"role": "system", "content": config.system}] if config.system else []
            said = [*system, {"role": "user", "content": config.prompt}]
            prompt_ids = await asyncio.to_thread(requester.encode_chat, said)
        request = replace(config.request, prompt_ids=tuple(prompt_ids))
        result: RunResult | None = None
        async with aclosing(requester.run(request, receipt=config.receipt)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    result = event.result
                else:
                    _show(event, config)
    if result is None:
        raise RunError("the run ended without a result; run it again, and with --speculation plain if it recurs")
    if config.stream:
        print(flush=True)
        say(summary(result))
    return result


def _show(event: WaitingForCoverage | RingOpened | CommittedTokens | Recovering, config: GenerateConfig) -> None:
    match event:
        case WaitingForCoverage():
            say(f"waiting for coverage: {event.reason}")
        case RingOpened():
            if config.stream:
                say(ring_line(event.ring))
        case Recovering():
            what = "is leaving" if event.leaving else f"is lost ({event.reason})"
            say(f"stage {event.lost} {what}; looking for another route")
        case CommittedTokens():
            if config.stream:
                sys.stdout.write(coloured(event) if config.color else event.text)
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
    return "\n".join(lines)


def _wants_color(choice: str, out: TextIO) -> bool:
    return choice == "always" or (choice == "auto" and out.isatty())
