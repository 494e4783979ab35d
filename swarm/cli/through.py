"""`swarm generate --gateway`: one answer of a gateway that runs already, its text to stdout, its receipt kept here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.base.errors import PeerError, RunError, SwarmError, UsageError
from swarm.base.files import write_whole
from swarm.base.option import option
from swarm.base.paths import read_path
from swarm.cli.common import say, state_dir
from swarm.cli.parser import Parser
from swarm.client.through_gateway import Gateway, GatewayAnswer, fetch_receipt, stream
from swarm.model.sampling import OWN, Sampling
from swarm.run.last_receipt import note_last

AUTO, NONE = "auto", "none"
_NOT_THERE = (
    "swarm http_proxy no_relay no_punch exclude only owners require_fingerprint draft_model draft_gpu wire private "
    "witness patience keep_receipts keep_for_learning learning_space"
).split()
"""Options that a gateway decides for all who ask it."""
_GROUP = "through a running gateway"


@dataclass(frozen=True)
class ThroughOptions:
    """Which gateway is asked, and with which key."""

    gateway: str = option(
        AUTO,
        "ask a `swarm serve` (such as http://127.0.0.1:8080) instead of entering the swarm: nothing is loaded here, so "
        "the first token comes at once; the gateway sees prompt and answer, and signs the receipt. auto: one of yours "
        "that runs on this machine with the same --state and serves the swarm that would be asked, where it can be "
        "told every option that is given; none: never (default: %(default)s)",
        "auto|URL|none",
        group=_GROUP,
    )
    gateway_key: Path | None = option(
        None, "file with the API key of the gateway at that URL", "FILE", read=read_path, group=_GROUP
    )
    verbose: bool = option(False, "say why no gateway is asked", short="-v", group=_GROUP)


def add(parser: Parser) -> None:
    """The options of a gateway, behind all other options."""
    parser.declare(ThroughOptions)
    parser.set_defaults(left_to_gateway={name: parser.usual(name) for name in _NOT_THERE})


def not_there(arguments: argparse.Namespace) -> str | None:
    """An option that was given and that no request can say, as it is typed; None: there is none."""
    usual = arguments.left_to_gateway
    given = (name for name in usual if getattr(arguments, name) != usual[name])
    return next(("--" + name.replace("_", "-") for name in given), None)


def generate(arguments: argparse.Namespace, prompt: str) -> int:
    """One answer of the gateway that was named. Returns the exit code. Raises SwarmError."""
    if (option := not_there(arguments)) is not None:
        raise UsageError(f"expected no {option} with --gateway: the gateway's own `swarm serve` decides that")
    if arguments.receipt is not None and arguments.no_receipt:
        raise UsageError("expected --receipt PATH or --no-receipt, found both")
    gateway = Gateway.at(arguments.gateway, _key(arguments.gateway_key))
    answer, pieces = GatewayAnswer(), list[str]()
    show(arguments, gateway, not arguments.raw, body(arguments, prompt), answer, pieces)
    return end(arguments, gateway, answer, "".join(pieces), kept_receipt(_receipt, arguments, gateway, answer))


def show(
    arguments: argparse.Namespace,
    gateway: Gateway,
    chat: bool,
    asked: dict[str, object],
    answer: GatewayAnswer,
    pieces: MutableSequence[str],
) -> None:
    """Ask, and print the text as it comes; `pieces` is what came so far, whatever is raised. Raises SwarmError."""
    for text in stream(gateway, chat, asked, answer):
        pieces.append(text)
        if not arguments.json:
            sys.stdout.write(text)
            sys.stdout.flush()


def kept_receipt(
    keep: Callable[[argparse.Namespace, Gateway, GatewayAnswer], Path | None],
    arguments: argparse.Namespace,
    gateway: Gateway,
    answer: GatewayAnswer,
) -> Path | SwarmError | None:
    """The receipt, or why it is not here: the answer is there all the same."""
    try:
        kept = keep(arguments, gateway, answer)
    except OSError as error:
        return RunError(f"cannot write the receipt: {error}; free space, or choose another --receipt")
    except SwarmError as error:
        return error
    unwritten = kept is None and answer.facts.get("receipt_unwritten")
    return RunError("the gateway could not write the receipt; its log says why") if unwritten else kept


def end(
    arguments: argparse.Namespace,
    gateway: Gateway,
    answer: GatewayAnswer,
    text: str,
    receipt: Path | SwarmError | None,
) -> int:
    """Say how it went. Returns the exit code."""
    lost, receipt = (receipt, None) if isinstance(receipt, SwarmError) else (None, receipt)
    code = 1 if answer.finish_reason == "swarm_incomplete" or lost else 0
    if arguments.json:
        told = {"text": text, "finish_reason": answer.finish_reason, "receipt": receipt and str(receipt)}
        print(json.dumps({**answer.facts, **told}, ensure_ascii=False))
        if lost:
            say(f"swarm: {lost}")
        return code
    print(flush=True)
    said = [f"through {gateway.url}"]
    if isinstance(speed := answer.facts.get("tokens_per_second"), float):
        said.append(f"{speed:.1f} tokens/s")
    say(", ".join(said) + (f"\nreceipt: {receipt}   (check it: swarm verify {receipt})" if receipt else ""))
    if lost:
        say(f"no receipt: {lost}")
    if answer.finish_reason == "swarm_incomplete":
        say("swarm: the run ended early: a stage was lost and no replacement came; what was committed is above")
    return code


def usual_receipt(arguments: argparse.Namespace, answer: GatewayAnswer) -> Path:
    """Where the receipt of a run goes when nobody says where."""
    return state_dir(arguments) / "receipts" / f"{answer.run}.json"


def _receipt(arguments: argparse.Namespace, gateway: Gateway, answer: GatewayAnswer) -> Path | None:
    """The receipt, fetched and kept. A gateway with this state folder keeps it whole there already, and what it hands
    out may lack the texts. Raises SwarmError."""
    if (address := answer.receipt) is None:
        return None
    data = fetch_receipt(gateway, address)
    kept: Path = arguments.receipt or usual_receipt(arguments, answer)
    if arguments.receipt is None and kept.exists():
        if not _same_run(kept.read_bytes(), data):
            raise PeerError(f"expected the receipt of a new run from the gateway, found one named as {kept} is")
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, data)
    note_last(state_dir(arguments) / "receipts", kept)
    return kept


def _same_run(kept: bytes, found: bytes) -> bool:
    """Whether one receipt is the other, or the other without its texts."""
    from receipts import ReceiptError
    from receipts.format.document import redact

    try:
        return found == kept or found == redact(kept, frozenset({"prompt", "tokens", "text"}))
    except ReceiptError:
        return False


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
