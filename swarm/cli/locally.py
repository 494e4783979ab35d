"""`swarm generate` by a gateway of the same user that runs on this machine, where it can say all that was asked."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from swarm.base.errors import PeerError, SwarmError
from swarm.base.files import write_whole
from swarm.cli.common import say, state_dir
from swarm.cli.through import body, end, kept_receipt, not_there, show, usual_receipt
from swarm.client.local_gateway import LocalGateway, ServedSwarm, WantedSwarm, find_served, running
from swarm.client.through_gateway import Gateway, GatewayAnswer, fetch_receipt
from swarm.model.sampling import OWN, Sampling, recommended, say_settings
from swarm.run.last_receipt import note_last

ANSWER_S = 3.0
"""A gateway that runs says within this what it serves."""
MOST_TOKENS_BYTES = 64 << 20
LAST_INVITE = "last.invite"


class NotThrough(Exception):
    """Why no gateway is asked; the swarm itself is then."""


@dataclass(frozen=True)
class _Asked:
    """A gateway that answers, and what is asked of it."""

    gateway: Gateway
    served: ServedSwarm


def generate(arguments: argparse.Namespace, prompt: str) -> int | None:
    """One answer. Returns the exit code; None when it is for the swarm itself to give. Raises SwarmError for an answer
    that broke off after its first word."""
    pieces: list[str] = []
    try:
        if arguments.receipt is not None and arguments.no_receipt:
            raise NotThrough("a receipt and none are asked for")
        asked = _found(arguments)
        request = _request(arguments, prompt, asked)
        say(f"through your gateway at {asked.gateway.url} (--gateway none: without it)")
        answer = GatewayAnswer()
        show(arguments, asked.gateway, False, request, answer, pieces)
        receipt = kept_receipt(_receipt, arguments, asked.gateway, answer)
    except NotThrough as why:
        if arguments.verbose:
            say(f"not through a gateway: {why}")
        return None
    except SwarmError as error:
        if pieces:
            raise
        say(f"not through a gateway: {error}")
        return None
    return end(arguments, asked.gateway, answer, "".join(pieces), receipt)


def _found(arguments: argparse.Namespace) -> _Asked:
    """The gateway to ask. Raises NotThrough."""
    gateways, wrong = running(state_dir(arguments))
    if arguments.verbose:
        for line in wrong:
            say(f"a gateway's file is not used: {line}")
    if not gateways:
        raise NotThrough("none runs here")
    if (name := _unsaid(arguments)) is not None:
        raise NotThrough(f"no request to one can say {name}")
    try:
        found = find_served(gateways, _wanted(arguments))
        if isinstance(found, str):
            raise NotThrough(found)
        announced, served = found
        if announced.own_template and not arguments.raw:
            raise NotThrough("the one that runs here has --chat-template-kwargs of its own")
        return _answering(announced, served)
    except SwarmError as error:
        raise NotThrough(str(error)) from error


def _unsaid(arguments: argparse.Namespace) -> str | None:
    """An option that is asked for and that no request can say."""
    given = argparse.Namespace(**{**vars(arguments), "swarm": None})  # which swarm it is decides which gateway
    if (name := not_there(given)) is not None:
        return name
    if arguments.json:
        return "--json"  # it tells token ids and the ring, which no answer of a gateway does
    return "--color always" if arguments.color == "always" else None


def _wanted(arguments: argparse.Namespace) -> WantedSwarm:
    """What would be asked without a gateway. Raises SwarmError for an invite that is none."""
    from swarm.mesh.invite import parse_invite_untrusted

    if arguments.swarm is not None:
        invite = parse_invite_untrusted(arguments.swarm)
        return WantedSwarm(invite.swarm.hex(), invite.model.hex())
    last = None
    try:
        last = parse_invite_untrusted((state_dir(arguments) / LAST_INVITE).read_text("utf-8")).swarm.hex()
    except (OSError, ValueError, PeerError):
        pass
    return WantedSwarm(last=last, search=not arguments.no_lan)


def _answering(announced: LocalGateway, served: ServedSwarm) -> _Asked:
    """The same, once it has answered. Raises NotThrough, SwarmError."""
    brief = Gateway.at(announced.url, announced.key, ANSWER_S)
    entry = _json(brief, "GET", f"/v1/models/{quote(served.model, safe='')}", None)
    if entry.get("manifest_digest") != served.digest:
        raise NotThrough(f"the one at {announced.url} serves another model than it tells")
    return _Asked(Gateway.at(announced.url, announced.key), served)


def _request(arguments: argparse.Namespace, prompt: str, asked: _Asked) -> dict[str, object]:
    """The body for /v1/completions, which gives the text as the model has it: a chat would have thoughts and calls
    taken out. Raises SwarmError, NotThrough."""
    found = body(arguments, prompt)
    if not arguments.raw:
        chat = {"messages": found.pop("messages"), "model": asked.served.model}
        tokens = _json(asked.gateway, "POST", "/tokenize", chat).get("tokens")
        if not isinstance(tokens, list):
            raise NotThrough("it says no tokens of the chat")
        found["prompt"] = [tokens]
    found["model"] = asked.served.model
    if not any(hasattr(arguments, name) for name in OWN):
        own = recommended(Sampling(), asked.served.sampling)
        if own != Sampling():
            say(f"sampling as the model's makers recommend: {say_settings(own)} (--temperature 0: the likeliest)")
        found |= {name: getattr(own, name) for name in OWN}
    return found


def _json(gateway: Gateway, method: str, path: str, sent: dict[str, object] | None) -> dict[str, object]:
    """A JSON object from a gateway. Raises SwarmError, NotThrough."""
    answered = gateway.ask(method, path, "application/json", sent)
    try:
        data = answered.response.read(MOST_TOKENS_BYTES)
        told = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise NotThrough(f"it says no JSON ({error})") from error
    finally:
        answered.close()
    if not isinstance(told, dict):
        raise NotThrough("it says something else than expected")
    return told


def _receipt(arguments: argparse.Namespace, gateway: Gateway, answer: GatewayAnswer) -> Path | None:
    """The receipt, whole: the gateway keeps it in this state folder. Raises SwarmError."""
    if (address := answer.receipt) is None:
        return None
    usual = usual_receipt(arguments, answer)
    if arguments.receipt is None and usual.is_file():
        return usual
    kept: Path = arguments.receipt or usual
    data = usual.read_bytes() if usual.is_file() else fetch_receipt(gateway, address)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, data)
    note_last(state_dir(arguments) / "receipts", kept)
    return kept
