"""The dashboard's files, read once; a request can name nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from aiohttp import web

from swarm.serve.errors import ApiError

_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "webmanifest": "application/manifest+json",
    "txt": "text/plain",
}


@dataclass(frozen=True)
class Asset:
    body: bytes
    content_type: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """Every file of swarm/serve/static and its folder of other people's software, by name."""
    static = files("swarm.serve").joinpath("static")
    return {**_folder(static, ""), **_folder(static.joinpath("vendor"), "vendor/")}


def _folder(folder: Traversable, prefix: str) -> dict[str, Asset]:
    assets = {}
    for entry in folder.iterdir():
        kind = _TYPES.get(entry.name.rsplit(".", 1)[-1])
        if kind is not None:
            body = entry.read_bytes()
            assets[prefix + entry.name] = Asset(body, kind, hashlib.sha256(body).hexdigest()[:20])
    return assets


def respond(request: web.Request, assets: dict[str, Asset], name: str) -> web.Response:
    """One file, or 304 when the browser has it."""
    asset = assets.get(name)
    if asset is None:
        raise ApiError(404, f"there is no file {name[:100]!r} here", "unknown_url")
    headers = {"ETag": f'"{asset.etag}"', "Cache-Control": "no-cache"}
    if asset.etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers)
