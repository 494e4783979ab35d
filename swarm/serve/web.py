"""What every request passes: its id, who is asking, where it comes from, errors in one shape, security headers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from swarm.base.errors import SwarmError
from swarm.serve.body import opened, parse_json_untrusted
from swarm.serve.compat.shapes import error_body
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, translate
from swarm.serve.intake import OPENED_BYTES, Holding, Intake
from swarm.serve.keys import find_user
from swarm.serve.listen import answering, telling
from swarm.serve.metrics import RequestMetrics

log = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
USER = web.RequestKey("user", str)
RECEIPT = web.RequestKey("receipt", str)
"""Where the receipt of the answer is."""
IGNORED = web.RequestKey("ignored", tuple[str, ...])
BODY = web.RequestKey("body", object)
"""The body as it was read, for whoever reads it next."""
HELD = web.RequestKey("held", Holding)
INTAKE = web.AppKey("intake", Intake)
NOTE = web.RequestKey("note", str)
ALIAS_PROMPT = web.RequestKey("alias_prompt", str)
"""The system prompt of the alias that a request asked for; "" for none."""
PUBLIC = frozenset({"/", "/healthz", "/health", "/openapi.json"})
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_EXPOSED = ", ".join(
    (
        "x-request-id, x-receipt, x-ignored-fields, x-note, retry-after",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    )
)
_OUR_HEADERS = ["authorization", "content-type", "x-api-key", "x-request-id"]
_SDK_HEADER = re.compile(r"x-stainless-[a-z0-9-]{1,64}|anthropic-[a-z-]{1,64}|openai-[a-z-]{1,64}|user-agent")
_OUR_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Observe = Callable[[web.Request, int, float], None]


def error_response(request: web.Request, error: ApiError) -> web.Response:
    """The error in the shape of the API whose path was asked for."""
    request_id = request.get(REQUEST_ID) or _id_of(request)
    headers = {**error.headers(), "x-request-id": request_id}
    return web.json_response(error_body(request.path, error, request_id), status=error.status, headers=headers)


def frame(config: GatewayConfig, *observers: Observe) -> Middleware:
    """The outermost middleware. Each of `observers` is called once per request: (request, status, seconds)."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[REQUEST_ID] = _id_of(request)
        started = time.monotonic()
        status = 499  # a client that left
        try:
            with answering(request):
                response = await _answer(request, handler, config)
            status = response.status
            if receipt := response.headers.get("x-receipt"):
                request[RECEIPT] = receipt
            return response
        except Exception as error:
            left = request.transport is None or request.transport.is_closing()
            if isinstance(error, ConnectionError) and left:
                return web.Response(status=status)  # nobody reads it; raised, it would be logged as a fault of ours
            status = error.status if isinstance(error, web.HTTPException) else 500
            raise
        finally:
            if HELD in request:
                request[HELD].release()
            for observe in observers:
                observe(request, status, time.monotonic() - started)

    return middleware


def observer(metrics: RequestMetrics) -> Observe:
    """Counts requests under their route's pattern, so that strangers' paths make no new label."""

    def observe(request: web.Request, status: int, seconds: float) -> None:
        resource = request.match_info.route.resource
        metrics.request(resource.canonical if resource else "unknown", _method(request), status, seconds)
        quiet = status < 400 and request.method in ("GET", "HEAD", "OPTIONS")  # pictures of the dashboard, scrapes
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d in %.0f ms for %s, request %s",
            request.method, _path(request), status, seconds * 1000, request.get(USER) or "nobody", request[REQUEST_ID],
        )  # fmt: skip

    return observe


def _path(request: web.Request) -> str:
    """The path without its query, in printable characters and cut to what a line bears: it is a stranger's."""
    return request.path[:100].encode("unicode_escape").decode("ascii")


def _method(request: web.Request) -> str:
    return request.method if request.method in ("GET", "POST", "HEAD", "OPTIONS") else "other"


async def _answer(request: web.Request, handler: Handler, config: GatewayConfig) -> web.StreamResponse:
    try:
        check_origin(request, config)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return _preflight(request, config)
        request[USER] = _user(request, config)
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        raise
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        return error_response(request, _from_http(request, exc))
    except SwarmError as exc:
        error = translate(exc)
        if error.status >= 500:
            log.warning("request %s failed: %s", request[REQUEST_ID], exc)
        return error_response(request, error)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("request %s failed", request[REQUEST_ID])
        text = f"something broke in the gateway; its log has the details under {request[REQUEST_ID]}"
        return error_response(request, ApiError(500, text, "internal_error"))


def _from_http(request: web.Request, exc: web.HTTPException) -> ApiError:
    if exc.status == 404:
        return ApiError(404, f"nothing is at {request.path[:200]}; GET /openapi.json lists what is", "unknown_url")
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        text = f"{request.method[:20]} does not work on {request.path[:200]}; use {allowed}"
        return ApiError(405, text, "wrong_method", allow=allowed)
    return ApiError(exc.status, exc.reason, "bad_request")


def _user(request: web.Request, config: GatewayConfig) -> str:
    """The key's name; without keys the address, so that one client's flood is one user's."""
    if not config.api_keys:
        return request.remote or "local"
    if request.path in PUBLIC or request.path.startswith("/static/"):
        return "public"
    header = request.headers.get("Authorization")
    if header is None and (key := request.headers.get("X-Api-Key")) is not None:
        header = f"Bearer {key}"
    user = find_user(header, config.api_keys)
    if user is None:
        text = "expected a known API key as 'Authorization: Bearer <key>' or 'X-Api-Key: <key>', found none"
        raise ApiError(401, text, "invalid_api_key")
    return user


def check_origin(request: web.Request, config: GatewayConfig) -> None:
    """Keep foreign web pages out: by Origin, and (without keys) by Host, which a rebound DNS name would give away."""
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    if origin is not None and not _allowed(origin, config):
        if origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise ApiError(403, f"pages from {origin[:100]} may not call this; --allow-origin would let them", "origin")
    if not config.api_keys and not _known_host(host, config):
        raise ApiError(403, f"this gateway is not {host[:100]!r}; use its IP address, or --allow-host", "host")


def _allowed(origin: str, config: GatewayConfig) -> bool:
    return "*" in config.allow_origins or origin in config.allow_origins


def _known_host(host: str, config: GatewayConfig) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in ("", "localhost") or name.endswith(".localhost") or not {"*", name}.isdisjoint(config.allow_hosts):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _preflight(request: web.Request, config: GatewayConfig) -> web.Response:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join(_OUR_HEADERS + _sdk_headers(request)),
        "Access-Control-Max-Age": "600",
    }
    return web.Response(headers=headers)


def _sdk_headers(request: web.Request) -> list[str]:
    """What clients' libraries tell of themselves in headers that grow with their versions: read by nobody here."""
    asked = request.headers.get("Access-Control-Request-Headers", "")[:4096].lower().split(",")
    return sorted({name for item in asked if _SDK_HEADER.fullmatch(name := item.strip())})


def add_headers(config: GatewayConfig) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """on_response_prepare hook: also reaches streams and errors made by aiohttp."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        telling(request)
        for name, value in _SECURITY.items():
            response.headers.setdefault(name, value)
        if REQUEST_ID in request:
            response.headers.setdefault("x-request-id", request[REQUEST_ID])
        if ignored := request.get(IGNORED):
            response.headers.setdefault("x-ignored-fields", _listed(ignored))
        if note := request.get(NOTE):
            response.headers.setdefault("x-note", note)
        origin = request.headers.get("Origin")
        if origin is not None and _allowed(origin, config):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
            response.headers.add("Vary", "Origin")

    return prepare


def _listed(names: tuple[str, ...]) -> str:
    """Names for a header: printable, and not more than a proxy takes."""
    clean = (re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", name[:80]) for name in names[:32])
    return ", ".join([*clean, *(["..."] if len(names) > 32 else [])])


def inviting(config: GatewayConfig) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Answers `Expect: 100-continue`: a body that would be refused for its size is not asked for."""

    async def handler(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Expect", "").lower() != "100-continue":
            return error_response(request, ApiError(417, "only 100-continue can be expected", "bad_request"))
        if (request.content_length or 0) > config.max_body_bytes:
            response = error_response(request, _too_large(config))
            response.force_close()
            return response
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    return handler


def _too_large(config: GatewayConfig) -> ApiError:
    return ApiError(413, f"expected a body of at most {config.max_body_bytes} bytes", "body_too_large")


def _id_of(request: web.Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _OUR_ID.fullmatch(given) else "req_" + secrets.token_hex(12)


async def read_json(request: web.Request, config: GatewayConfig) -> object:
    """The body, bounded in bytes and time, and read once. Raises ApiError 400, 408, 413, 415 or 503."""
    if BODY in request:
        return request[BODY]
    if request.content_type not in (
        "application/json",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
    ):
        raise ApiError(
            415, f"expected application/json, found {request.content_type[:100]!r}", "unsupported_media_type"
        )
    too_large = _too_large(config)
    if (request.content_length or 0) > config.max_body_bytes:
        raise too_large
    body = bytearray()
    held = request[HELD] = request.app[INTAKE].of(request.remote or "")
    try:
        async with asyncio.timeout(config.body_timeout_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > config.max_body_bytes:
                    raise too_large
                held.add(len(chunk))
    except TimeoutError as exc:
        text = f"the body did not arrive within {config.body_timeout_s:g} s"
        raise ApiError(408, text, "body_timeout") from exc
    except web.RequestPayloadError as exc:
        raise ApiError(400, "the body does not follow HTTP", "invalid_body") from exc
    held.add(OPENED_BYTES * opened(body))
    if len(body) > 65536:
        return await asyncio.to_thread(parse_json_untrusted, bytes(body))
    return parse_json_untrusted(bytes(body))
