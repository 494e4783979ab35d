"""`swarm generate --gateway`: one answer of a gateway that runs already, its text to stdout, its receipt kept here."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.base.errors import UsageError
from swarm.base.files import write_whole
from swarm.base.option import option
from swarm.base.paths import read_path
from swarm.cli.common import say, state_dir
from swarm.cli.parser import Parser
from swarm.client.through_gateway import Gateway, GatewayAnswer, fetch_receipt, stream
from swarm.model.sampling import OWN, Sampling

_NOT_THERE = (
    "swarm http_proxy exclude only owners require_fingerprint draft_model draft_gpu wire private witness".split()
)
"""Options that a gateway decides for all who ask it."""


@dataclass(frozen=True)
class ThroughOptions:
    """Which gateway is asked, and with which key."""

    gateway: str | None = option(
        None,
        "ask a `swarm serve` (such as http://127.0.0.1:8080) instead of entering the swarm: nothing is loaded here, so "
        "the first token comes at once; the gateway sees prompt and answer, and signs the receipt",
        "URL",
        group="through a running gateway",
    )
    gateway_key: Path | None = option(
        None, "file with the API key of that gateway", "FILE", read=read_path, group="through a running gateway"
    )


def add(parser: Parser) -> None:
    """The options of a gateway, behind all other options."""
    parser.declare(ThroughOptions)
    parser.set_defaults(left_to_gateway={name: parser.get_default(name) for name in _NOT_THERE})


def generate(arguments: argparse.Namespace, prompt: str) -> int:
    """One answer. Returns the exit code. Raises SwarmError."""
    for name, usual in arguments.left_to_gateway.items():
        if getattr(arguments, name) != usual:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"expected no {option} with --gateway: the gateway's own `swarm serve` decides that")
    if arguments.receipt is not None and arguments.no_receipt:
        raise UsageError("expected --receipt PATH or --no-receipt, found both")
    gateway = Gateway.at(arguments.gateway, _key(arguments.gateway_key))
    answer, pieces = GatewayAnswer(), []
    for text in stream(gateway, not arguments.raw, body(arguments, prompt), answer):
        pieces.append(text)
        if not arguments.json:
            sys.stdout.write(text)
            sys.stdout.flush()
    kept = None
    if (address := answer.receipt) is not None:
        kept = arguments.receipt or state_dir(arguments) / "receipts" / f"{answer.run}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, fetch_receipt(gateway, address))
    code = 1 if answer.finish_reason == "swarm_incomplete" else 0
    if arguments.json:
        told = {"text": "".join(pieces), "finish_reason": answer.finish_reason, "receipt": kept and str(kept)}
        print(json.dumps({**answer.facts, **told}, ensure_ascii=False))
        return code
    print(flush=True)
    said = [f"through {gateway.url}"]
    if isinstance(speed := answer.facts.get("tokens_per_second"), float):
        said.append(f"{speed:.1f} tokens/s")
    say(", ".join(said) + (f"\nreceipt: {kept}   (check it: swarm verify {kept})" if kept else ""))
    if code:
        say("swarm: the run ended early: a stage was lost and no replacement came; what was committed is above")
    return code


def body(arguments: argparse.Namespace, prompt: str) -> dict[str, Any]:
    """The request: the options of `swarm generate` as the API has them. Raises UsageError."""
    if arguments.raw:
        found: dict[str, Any] = {"prompt": prompt}
    else:
        system = [{"role": "system", "content": arguments.system}] if arguments.system else []
        found = {"messages": [*system, {"role": "user", "content": prompt}]}
    for name in ("max_tokens", "seed", "ignore_eos"):
        found[name] = getattr(arguments, name)
    if any(hasattr(arguments, name) for name in OWN):  # else the gateway takes the model's own settings
        found |= {name: getattr(arguments, name, getattr(Sampling(), name)) for name in OWN}
    if arguments.stop:
        found["stop"] = arguments.stop
    found["speculation"], found["private_text"] = arguments.speculation, arguments.private_text
    found["draft"] = "none" if arguments.speculation == "plain" else arguments.draft
    found["receipt"] = not arguments.no_receipt
    if arguments.regex is not None:
        found["regex"] = arguments.regex
    try:
        if arguments.json_schema is not None:
            found["json_schema"] = json.loads(arguments.json_schema.read_text("utf-8"))
        if arguments.grammar is not None:
            found["grammar"] = arguments.grammar.read_text("utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"expected a readable file of JSON or a grammar in UTF-8, found another: {error}") from error
    return found


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        words = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its bytes are no text in UTF-8"
        raise UsageError(f"expected a file with an API key, found {path}: {reason}") from error
    if not words or not words[0].isascii():
        raise UsageError(f"expected an API key as the first word of {path}, found none")
    return words[0]
