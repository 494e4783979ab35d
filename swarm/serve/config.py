"""Settings of the gateway, built once at the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swarm.base.config import GRACE
from swarm.base.errors import UsageError
from swarm.base.option import like, option
from swarm.base.paths import stream_to_write
from swarm.run.api import Draft, RunRequest, Speculation
from swarm.serve.body import parse_json_untrusted
from swarm.serve.errors import ApiError
from swarm.serve.keys import ApiKey, load_keys
from swarm.serve.messages import template_options_untrusted

MAX_PROMPT_BYTES = 1 << 18
PrefixSharing = Literal["off", "user", "shared"]


def alias(text: str) -> tuple[str, str]:
    """NAME=MODEL. Raises UsageError."""
    name, _, model = text.partition("=")
    if not name or not model or len(name) > 200:
        raise UsageError(f"expected NAME=MODEL, found {text!r}")
    return name, model


def alias_prompt(text: str) -> tuple[str, str]:
    """NAME=FILE, as the name and the file's text. Raises UsageError."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise UsageError(f"expected NAME=FILE, found {text!r}")
    try:
        told = Path(path).read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read the prompt of {name} in {path}: {exc.strerror}; give a readable file") from exc
    if not told.strip() or len(told) > MAX_PROMPT_BYTES:
        raise UsageError(f"expected 1 to {MAX_PROMPT_BYTES} bytes of a prompt in {path}, found {len(told)}")
    try:
        return name, told.decode().strip()
    except UnicodeDecodeError as exc:
        raise UsageError(f"expected text in UTF-8 in {path}, found byte {exc.start} that is not") from exc


def template_options(text: str) -> Mapping[str, Any]:
    """Variables of chat templates, as JSON. Raises UsageError."""
    try:
        return template_options_untrusted(parse_json_untrusted(text.encode()), "--chat-template-kwargs")
    except ApiError as exc:
        raise UsageError(f"{exc.message}; expected --chat-template-kwargs to be a JSON object of variables") from exc


@dataclass(frozen=True)
class GatewayConfig:
    """Limits and defaults.

    api_keys              from `swarm.serve.keys.load_keys`; empty: no key is asked for
    access_log            file that gets a line for every request; None: none
    allow_origins         web origins other than our own that may call the API from a browser; "*" for all
    allow_hosts           DNS names under which the gateway may be called when there are no keys (besides
                          localhost and IP addresses); keeps a hostile page from rebinding its name to us
    share_invite          whether whoever sees the dashboard may have the invite that this gateway came in by; that of
                          an open swarm is no secret and told anyway
    max_body_bytes        of a request
    max_bodies_bytes      of all requests under way together; half for one address
    max_running           runs on the ring at once, of each model
    max_running_of        the same for single models, by name
    aliases               (name, model) that requests may use besides the models' own names
    alias_prompts         (alias, text): what chats that ask for this alias begin with
    max_waiting           requests in the queue, all users together
    max_waiting_per_user  requests in the queue, one user (an API key, or an address when there are no keys)
    max_wait_s            in the queue, before 503
    body_timeout_s        for a client to deliver its body
    idle_timeout_s        for a client to deliver request line and headers, and between requests
    write_timeout_s       for a client to take what was written to it
    keepalive_comment_s   between comment lines of a stream while no token comes
    max_connections       open sockets
    grace_s               for answers under way when the gateway is asked to stop
    max_choices           upper bound of `n`
    slots                 tell at /slots how many runs are under way
    verbose               tell each chat's prompt as text, as a body's `verbose` does for one
    default_seed          where a request names none; None: another one each time
    default_max_tokens    for a chat that names none (and the context allows)
    default_temperature   for API calls that name none; None: the model's own, or else OpenAI's 1.0
    strict                refuse fields that nobody reads instead of naming them in a header
    template_options      variables of chat templates where a request gives none
    model_sampling        other sampling options where a call names none: the model's own
    prefix_cache          whose earlier runs a run may begin from: nobody's, those of the same user, or everybody's,
                          who then can tell by time and by `cached_tokens` what others asked
    """

    api_keys: tuple[ApiKey, ...] = option(
        (),
        "keys that clients must show, one a line: NAME:SECRET, then limits if any: requests=60/min tokens=200000/day "
        "at-once=2",
        "FILE",
        name="--api-key",
        read=lambda name: load_keys(Path(name)),
        group="http",
        everyday=True,
    )
    access_log: Path | None = option(
        None, "a JSON line for every request: key, path, status, receipt", "FILE", read=stream_to_write, group="http"
    )
    allow_origins: tuple[str, ...] = option(
        (), "web origin that may call", "ORIGIN", name="--allow-origin", repeat=True, group="http"
    )
    allow_hosts: tuple[str, ...] = option(
        (), "DNS name of this gateway", "NAME", name="--allow-host", repeat=True, group="http"
    )
    share_invite: bool = option(
        False, "let whoever sees the dashboard copy the invite that this gateway came in by", group="http"
    )
    max_body_bytes: int = 4 << 20
    max_bodies_bytes: int = 256 << 20
    max_running: int = 8
    max_running_of: tuple[tuple[str, int], ...] = ()
    aliases: tuple[tuple[str, str], ...] = option(
        (),
        "another name for a model, such as the one that a client insists on; * stands for every unknown name "
        "(may be given several times)",
        "NAME=MODEL",
        name="--alias",
        read=alias,
        repeat=True,
        group="http",
    )
    alias_prompts: tuple[tuple[str, str], ...] = option(
        (),
        "system prompt of an alias, from a file; it comes before that of a request, and its part of the prefix cache "
        "is everybody's (may be given several times)",
        "NAME=FILE",
        name="--alias-prompt",
        read=alias_prompt,
        repeat=True,
        group="http",
    )
    max_waiting: int = 256
    max_waiting_per_user: int = 32
    max_wait_s: float = 60.0
    body_timeout_s: float = 20.0
    idle_timeout_s: float = 20.0
    write_timeout_s: float = 30.0
    keepalive_comment_s: float = 10.0
    max_connections: int = 4096
    grace_s: float = option(
        5.0,
        "how long answers may take to end when stopping; what is not done by then ends with an error "
        "(default: %(default)s)",
        "S",
        name="--grace",
        read=GRACE,
        group="http",
    )
    max_choices: int = 8
    slots: bool = True
    verbose: bool = False
    default_seed: int | None = None
    default_max_tokens: int = 1024
    default_temperature: float | None = None
    strict: bool = option(
        False,
        "refuse requests with fields that are not known, instead of naming them in x-ignored-fields",
        group="http",
    )
    template_options: Mapping[str, Any] = option(
        {},
        "variables of chat templates, unless a request gives its own: '{\"enable_thinking\": false}'",
        "JSON",
        name="--chat-template-kwargs",
        read=template_options,
        factory=dict,
        group="http",
    )
    model_sampling: Mapping[str, float] = field(default_factory=dict)
    speculation: Speculation = like(RunRequest, "speculation")
    draft: Draft = like(RunRequest, "draft")
    wire: str = like(RunRequest, "wire")
    patience_s: float = like(RunRequest, "patience_s")
    private: int = 0
    witnesses: int | None = None
    prefix_cache: PrefixSharing = option(
        "user",
        "whose earlier requests may save a request the part that they share: nobody's, those of the same API key "
        "(or address, without keys), or everybody's, which lets users guess what others asked (default: %(default)s)",
        choices=("off", "user", "shared"),
        group="http",
    )

    def shares(self, user: str) -> str | None:
        """Under which name what a user's requests leave behind is kept for later ones; None: not at all."""
        return {"off": None, "user": user, "shared": ""}[self.prefix_cache]
