"""`swarm generate` through a gateway that runs already: HTTP and nothing else, so that no model code is loaded.

A requester of its own needs torch, a tokenizer and a drafter before its first token, seconds of processor time; a
gateway on the same machine has them. Only the standard library is used here: what is imported is what it costs.
"""

from __future__ import annotations

import http.client
import json
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from swarm.base.errors import PeerError, RunError, SwarmError, UsageError

MOST_LINE = 1 << 20
"""Bytes of one event."""
MOST_RECEIPT = 64 << 20
MOST_REFUSAL = 1 << 16
CONNECT_S = 10.0
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can spell and no terminal can be sent."""
_NAME = frozenset(string.ascii_letters + string.digits + "-_")


@dataclass(frozen=True)
class Gateway:
    """Where a gateway listens. key: for the `Authorization` header, None: none. silence_s: longest wait for its next
    byte; it says something every few seconds while an answer is under way."""

    scheme: str
    host: str
    port: int
    path: str = ""
    key: str | None = None
    silence_s: float = 600.0

    @classmethod
    def at(cls, url: str, key: str | None = None, silence_s: float = 600.0) -> Gateway:
        """From http://HOST:PORT, with or without /v1. Raises UsageError."""
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname or ""
            host.encode("idna")
        except ValueError:
            parts, port, host = urlsplit(""), None, ""
        odd = not host or port == 0 or " " in url or not url.isprintable()
        if odd or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username is not None:
            raise UsageError(f"expected the address of a gateway as http://HOST:PORT, found {url!r}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("expected a gateway's key in printable ASCII, on one line")
        port = port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, host, port, parts.path.rstrip("/").removesuffix("/v1"), key, silence_s)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def ask(self, method: str, path: str, wanted: str, body: Mapping[str, Any] | None = None) -> _Answered:
        """One request, whose answer has the media type `wanted`. Raises RunError where nobody answers, UsageError
        or RunError for what the gateway refuses, PeerError for another type (a page, say)."""
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=CONNECT_S)
        headers = {"Accept": wanted, **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.connect()
            connection.sock.settimeout(self.silence_s)
            connection.request(method, self.path + path, data, headers)
            response = connection.getresponse()
            kind_found = response.headers.get_content_type()
            if response.status == 200 and kind_found == wanted:
                return _Answered(connection, response)
            if response.status == 200:
                response.close()
                refusal: SwarmError = PeerError(
                    f"expected {wanted} from a gateway at {self.url}, found {kind_found[:80]}: is it a `swarm serve`?"
                )
            else:
                refusal = refusal_untrusted(response.status, response.read(MOST_REFUSAL))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            why = str(error) or type(error).__name__
            raise RunError(
                f"expected a gateway at {self.url}, found none that answers ({why}); start one: swarm serve"
            ) from error
        connection.close()
        raise refusal


@dataclass(frozen=True)
class _Answered:
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@dataclass
class GatewayAnswer:
    """What is known of one answer; `facts` is the gateway's account of the run, filled in when it is over."""

    finish_reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def receipt(self) -> str | None:
        """Its address on the gateway, None when there is none. Raises PeerError for anything else."""
        address, run = self.facts.get("receipt"), self.run
        if address is not None and (run is None or address != f"/v1/receipts/{run}"):
            raise PeerError("expected the address of this run's receipt from the gateway, found another")
        return None if address is None else str(address)

    @property
    def run(self) -> str | None:
        """The run's id, fit for the name of a file."""
        run = self.facts.get("run_id")
        whole = isinstance(run, str) and 0 < len(run) <= 128 and set(run) <= _NAME
        return run if whole else None


def stream(gateway: Gateway, chat: bool, body: Mapping[str, Any], answer: GatewayAnswer) -> Iterator[str]:
    """The text of an answer as it comes; `answer` is filled in at its end. chat: by messages instead of a prompt.

    Raises RunError when the gateway breaks off or tells of an error, PeerError for what is no stream of events.
    """
    path = "/v1/chat/completions" if chat else "/v1/completions"
    with closing(gateway.ask("POST", path, "text/event-stream", {**body, "stream": True})) as answered:
        while True:
            try:
                line = answered.response.readline(MOST_LINE + 1)
            except (OSError, http.client.HTTPException) as error:
                raise RunError(f"the gateway at {gateway.url} broke off ({error}); run it again") from error
            if not line:
                raise RunError(f"the gateway at {gateway.url} broke off before the end; run it again")
            event = event_untrusted(line)
            if event == "[DONE]":
                return
            if isinstance(event, dict):
                if (told := event.get("error")) is not None:
                    why = told.get("message") if isinstance(told, dict) else told
                    raise RunError(f"the gateway: {str(why)[:1000]}")
                if text := _text_untrusted(event, chat, answer):
                    yield text


def fetch_receipt(gateway: Gateway, address: str) -> bytes:
    """The receipt of a run, once `swarm verify` would take it: what is kept is one. Raises RunError, PeerError."""
    from receipts.check.verify import verify  # when the answer has been told: nobody waits for it to load

    with closing(gateway.ask("GET", address, "application/json")) as answered:
        try:
            data = answered.response.read(MOST_RECEIPT + 1)
            if answered.response.length and len(data) <= MOST_RECEIPT:  # a read of so many bytes tells of no early end
                raise http.client.IncompleteRead(data, answered.response.length)
        except (OSError, http.client.HTTPException) as error:
            raise RunError(f"the gateway at {gateway.url} broke off within a receipt ({error})") from error
    if len(data) > MOST_RECEIPT:
        raise PeerError(f"expected a receipt of at most {MOST_RECEIPT >> 20} MiB from the gateway, found more")
    if (verdict := verify(data)).refusal is not None:
        raise PeerError(f"expected a receipt that verifies from the gateway, found one refused ({verdict.line[:200]})")
    return data


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def event_untrusted(line: bytes) -> dict[str, Any] | str | None:
    """One line of server-sent events: its JSON object, "[DONE]", or None for a line that says nothing. Raises
    PeerError."""
    if len(line) > MOST_LINE:
        raise PeerError(f"expected events of at most {MOST_LINE} bytes from the gateway, found a longer one")
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if data == b"[DONE]":
        return "[DONE]"
    try:
        event = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise PeerError("expected events with JSON objects from the gateway, found something else")
    return event


def refusal_untrusted(status: int, body: bytes) -> SwarmError:
    """What a gateway's refusal is to whoever asked."""
    try:
        told = str(json.loads(body)["error"]["message"])[:1000]
    except (ValueError, RecursionError, TypeError, KeyError, LookupError):
        told = "it does not say why"
    kind = UsageError if 400 <= status < 500 and status not in (408, 429) else RunError
    return kind(f"the gateway refused ({status}): {told}")


def _text_untrusted(event: Mapping[str, Any], chat: bool, answer: GatewayAnswer) -> str:
    """The text that an event adds. Raises PeerError."""
    facts, choices = event.get("wanswarm"), event.get("choices")
    if isinstance(facts, dict):
        answer.facts = facts
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    if isinstance(finish := choices[0].get("finish_reason"), str):
        answer.finish_reason = finish
    said = choices[0].get("delta") if chat else choices[0]
    text = said.get("content" if chat else "text") if isinstance(said, dict) else None
    if text is not None and not (isinstance(text, str) and _HALF.search(text) is None):
        raise PeerError("expected text in the gateway's event, found something else")
    return text or ""
