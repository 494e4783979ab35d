"""Gateways that run on this machine for the same user, so that `swarm generate` need not load what one of them holds.

A running `swarm serve` keeps `gateways/PID.json` in its state folder: where it listens, which swarms and models it
serves, and a key of its own where it asks for keys. The file is its user's alone (mode 0600) and locked for as long as
the gateway lives, so one that was left behind is known by its lock, whoever has the process number by now.
Only the standard library is used here: what is imported is what it costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swarm.base.errors import PeerError
from swarm.base.files import write_whole
from swarm.base.locks import lock_now

FOLDER = "gateways"
MOST_BYTES = 1 << 16
MOST_GATEWAYS = 32
"""Files that are looked at."""
MOST_SERVED = 256
_TRIES = 3
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class ServedSwarm:
    """One swarm of a gateway.

    swarm     its id, hex
    model     the model's name, as requests give it
    digest    of the model's manifest, hex
    searched  the gateway was given no invite: it took the swarm that a search found
    sampling  what the model's makers recommend, by option
    """

    swarm: str
    model: str
    digest: str
    searched: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalGateway:
    """A gateway as it tells of itself. key: for the `Authorization` header; None: it asks for none. own_template: it
    gives chat templates variables that nobody here asked for."""

    url: str
    served: tuple[ServedSwarm, ...]
    key: str | None = None
    own_template: bool = False

    def as_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()


@dataclass(frozen=True)
class WantedSwarm:
    """What an answer is wanted from.

    swarm, model  of the invite that was given: hex of the id, and of the first bytes of the manifest's digest; None: no
                  invite was given
    last          id of the swarm used last, hex; None: none is known
    search        a swarm that a search found will do, where no invite was given
    """

    swarm: str | None = None
    model: str | None = None
    last: str | None = None
    search: bool = True

    def fits(self, served: ServedSwarm) -> bool:
        """Whether this is what would be asked without a gateway."""
        if self.swarm is not None:
            return served.swarm == self.swarm and served.digest.startswith(self.model or "")
        return served.swarm == self.last or (self.search and served.searched)


def find_served(gateways: Sequence[LocalGateway], wanted: WantedSwarm) -> tuple[LocalGateway, ServedSwarm] | str:
    """The gateway to ask and what is asked of it, or why there is none, in words. A model that a gateway serves of two
    swarms is not asked for: its name does not say which."""
    twice = False
    for gateway in gateways:
        for served in gateway.served:
            if wanted.fits(served):
                if sum(other.model == served.model for other in gateway.served) == 1:
                    return gateway, served
                twice = True
    if twice:
        return "the gateway that runs here serves this model of several swarms, and requests name the model alone"
    return "no gateway that runs here serves this swarm" if gateways else "no gateway runs here"


@contextlib.contextmanager
def announced(state: Path, gateway: LocalGateway) -> Iterator[None]:
    """Tell of a gateway for as long as this lasts. Raises OSError where the state folder cannot be written."""
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}.json"
    handle = _written_and_locked(path, gateway.as_json())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _written_and_locked(path: Path, data: bytes) -> int:
    """The open file. Who looks before it is locked may take it for one left behind and remove it: then once more."""
    for _ in range(_TRIES):
        write_whole(path, data)
        handle = os.open(path, os.O_RDWR | _NO_LINK)
        held = lock_now(handle)
        with contextlib.suppress(OSError):
            if held and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
    raise OSError(None, "somebody keeps removing it", str(path))


def running(state: Path) -> tuple[tuple[LocalGateway, ...], tuple[str, ...]]:
    """The gateways that run now, and what was wrong with other files, in words. Files left behind are removed."""
    found: list[LocalGateway] = []
    wrong: list[str] = []
    try:
        paths = sorted((state / FOLDER).glob("*.json"))[:MOST_GATEWAYS]
    except OSError:
        paths = []
    for path in paths:
        try:
            found.append(_read(path))
        except (OSError, PeerError) as error:
            wrong.append(f"{path.name}: {error}")
    return tuple(found), tuple(wrong)


def _read(path: Path) -> LocalGateway:
    """Raises OSError, and PeerError for a file that is not to be believed."""
    handle = os.open(path, os.O_RDWR | _NO_LINK)
    try:
        _require_own(os.fstat(handle))
        if lock_now(handle):
            with contextlib.suppress(OSError):
                path.unlink()
            raise PeerError("expected a gateway that runs, found the file of one that is gone; it is removed")
        data = os.read(handle, MOST_BYTES + 1)
    finally:
        os.close(handle)
    return gateway_untrusted(data)


def _require_own(found: os.stat_result) -> None:
    """Whoever can write the file can have prompts sent wherever they like. Raises PeerError."""
    own = getattr(os, "geteuid", None)
    if not stat.S_ISREG(found.st_mode):
        raise PeerError("expected a file, found something else")
    if own is None:  # Windows: the user's folder has an access list of its own
        return
    if found.st_uid != own():
        raise PeerError(f"expected a file of the user {own()}, found one of {found.st_uid}")
    if found.st_mode & 0o077:
        raise PeerError(f"expected mode 0600, found {stat.S_IMODE(found.st_mode):04o}")


def gateway_untrusted(data: bytes) -> LocalGateway:
    """A gateway's file. Raises PeerError."""
    if len(data) > MOST_BYTES:
        raise PeerError(f"expected at most {MOST_BYTES} bytes, found more")
    try:
        told = json.loads(data)
        served = told["served"]
        if not isinstance(served, list) or len(served) > MOST_SERVED:
            raise ValueError("no list of swarms")
        gateway = LocalGateway(
            _text(told["url"]),
            tuple(_served(each) for each in served),
            None if told["key"] is None else _text(told["key"]),
            told["own_template"] is not False,
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PeerError(f"expected what a gateway tells of itself, found something else ({error})") from error
    return gateway


def _served(told: Any) -> ServedSwarm:
    """Raises ValueError, TypeError, KeyError."""
    sampling = told["sampling"]
    for value in sampling.values() if isinstance(sampling, dict) else [None]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("sampling that is no numbers")
    swarm, model, digest = (_text(told[name]) for name in ("swarm", "model", "digest"))
    return ServedSwarm(swarm, model, digest, told["searched"] is True, sampling)


def _text(told: Any) -> str:
    if not isinstance(told, str) or not told.isprintable() or not 0 < len(told) <= 4096:
        raise ValueError("no printable text where some is expected")
    return told
