"""Is there a newer version, may this machine run it, and can it talk to the swarm at hand? Asks a package index, once,
when a person asks for it; nothing else in this program does.

What the index answers is PyPI's JSON (https://docs.pypi.org/api/json/). The protocol that a release speaks stands among
its keywords, `wanswarm-protocol-1`, which the index repeats for the newest one.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from swarm import __version__
from swarm.base.errors import PeerError, RunError, UsageError

PACKAGE = "wanswarm"
INDEX = "https://pypi.org/pypi"
MAX_BYTES = 16 << 20
WAIT_S = 15.0
_PROTOCOL = re.compile(r"wanswarm-protocol-([0-9]{1,5})")


@dataclass(frozen=True)
class Newest:
    """What an index holds. `fits`: the newest that this Python may run, None where there is none; `protocol`: that of
    `version`, None where it does not say."""

    version: str
    fits: str | None
    protocol: int | None


def read_index(text: str) -> str:
    """The address of a package index. Raises UsageError."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise UsageError(f"expected an index such as {INDEX}, found {text!r}")
    return text.rstrip("/")


def ask_index(index: str, proxy: str | None, python: str) -> Newest:
    """One GET. Raises RunError where the index is not reached, PeerError for what is no answer of an index."""
    url = f"{index}/{PACKAGE}/json"
    proxies = {} if proxy is None else {"http": proxy, "https": proxy}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    asked = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": PACKAGE})
    try:
        with opener.open(asked, timeout=WAIT_S) as answer:
            data = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        said = "it knows no such package" if error.code == 404 else f"it answered {error.code}"
        raise RunError(f"{url}: {said}; give another --index") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(f"{url} was not reached ({reason}); check the network, or give --http-proxy URL") from error
    return read_answer_untrusted(data, python)


def read_answer_untrusted(data: bytes, python: str) -> Newest:
    """The newest release in an index's answer that is not withdrawn and no preview. Raises PeerError."""
    if len(data) > MAX_BYTES:
        raise PeerError(f"expected an index's answer of at most {MAX_BYTES >> 20} MiB, found more")
    try:
        found = json.loads(data)
        releases, info = found["releases"], found["info"]
        known = sorted(_usable_untrusted(releases), reverse=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PeerError("expected the JSON of a package index, found something else; give another --index") from error
    if not known:
        raise PeerError(f"expected a release of {PACKAGE} in the index, found none; give another --index")
    fits = next((version for version in known if _runs(releases[version.text], python)), None)
    words = info.get("keywords") if isinstance(info, dict) else None
    said = _PROTOCOL.search(words) if isinstance(words, str) and info.get("version") == known[0].text else None
    return Newest(known[0].text, None if fits is None else fits.text, None if said is None else int(said[1]))


@dataclass(frozen=True, order=True)
class _Known:
    """A version with the text by which the index names it."""

    version: Version
    text: str


def _usable_untrusted(releases: Mapping[str, Sequence[Mapping[str, object]]]) -> Iterable[_Known]:
    for text, files in releases.items():
        try:
            version = Version(text)
        except InvalidVersion:
            continue
        if not version.is_prerelease and any(not file.get("yanked") for file in files):
            yield _Known(version, text)


def _runs(files: Sequence[Mapping[str, object]], python: str) -> bool:
    """Whether a file of a release is for this Python."""
    for file in files:
        wanted = file.get("requires_python")
        try:
            if not wanted or (isinstance(wanted, str) and SpecifierSet(wanted).contains(python)):
                return True
        except InvalidSpecifier:
            continue
    return False


Way = Literal["pipx", "uv tool", "uv", "checkout", "pip"]


@dataclass(frozen=True)
class Installed:
    """How this program came here. `python`: its interpreter; `at`: the folder of a checkout."""

    way: Way
    python: str
    at: str = ""

    @property
    def upgrade(self) -> str:
        """The command that brings the newest version."""
        python, at = shlex.quote(self.python), shlex.quote(self.at)
        return {
            "pipx": f"pipx upgrade {PACKAGE}",
            "uv tool": f"uv tool upgrade {PACKAGE}",
            "uv": f"uv pip install --python {python} --upgrade {PACKAGE}",
            "checkout": f"git -C {at} pull && make -C {at} .venv/.demo",
            "pip": f"{python} -m pip install --upgrade {PACKAGE}",
        }[self.way]


def how_installed(prefix: Path, python: str, installer: str, direct_url: str | None) -> Installed:
    """From what an installer leaves behind: pipx and uv each a file beside the environment, an editable install its
    `direct_url.json` (PEP 610), all of them their name in `INSTALLER` (PEP 376)."""
    try:
        origin = json.loads(direct_url) if direct_url else {}
        editable = bool(origin["dir_info"].get("editable"))
        folder = urllib.request.url2pathname(str(origin["url"]).removeprefix("file://"))
    except (ValueError, KeyError, TypeError, AttributeError):
        editable, folder = False, ""
    if editable:
        return Installed("checkout", python, folder)
    if (prefix / "pipx_metadata.json").is_file():
        return Installed("pipx", python)
    if (prefix / "uv-receipt.toml").is_file():
        return Installed("uv tool", python)
    return Installed("uv" if installer.strip() == "uv" else "pip", python)


def installed_here() -> Installed:
    """How this very process came here."""
    try:
        about = metadata.distribution(PACKAGE)
        installer, origin = about.read_text("INSTALLER") or "", about.read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from a folder
        return Installed("checkout", sys.executable, str(Path(__file__).parents[2]))
    return how_installed(Path(sys.prefix), sys.executable, installer, origin)


@dataclass(frozen=True)
class Upgrade:
    """What there is to say. `swarm`: version -> how many nodes of the swarm at hand run it; None: not looked at."""

    here: str
    protocol: int
    newest: Newest
    installed: Installed
    swarm: Mapping[str, int] | None = None

    @property
    def newer(self) -> bool:
        """Whether there is a version to go to that this Python may run."""
        return self.newest.fits is not None and Version(self.newest.fits) > Version(self.here)

    @property
    def same_protocol(self) -> bool | None:
        """Whether the newest version talks to this one; None where it does not say."""
        return None if self.newest.protocol is None else self.newest.protocol == self.protocol

    def lines(self) -> list[str]:
        """For people."""
        newest = self.newest
        said = [f"here: {PACKAGE} {self.here}, protocol {self.protocol}"]
        if self.swarm is not None:
            nodes = ", ".join(f"{count} of {version}" for version, count in sorted(self.swarm.items()))
            said.append(f"swarm: {nodes or 'no node is up'}; this version talks to it")
        if Version(newest.version) <= Version(self.here):
            return [*said, f"newest: {newest.version}: nothing to do"]
        said.append(f"newest: {newest.version}{self._compatible()}")
        if newest.fits is None or newest.fits != newest.version:
            fits = f"{newest.fits} is the newest for it" if newest.fits else "no release is for it"
            said.append(f"python: {newest.version} is not for Python {platform.python_version()}; {fits}")
        if self.newer:
            said.append(f"upgrade: {self.installed.upgrade}")
        return said

    def _compatible(self) -> str:
        match self.same_protocol:
            case True:
                return f", protocol {self.newest.protocol} too: nodes of a swarm may be upgraded one by one"
            case False:
                return f", protocol {self.newest.protocol}: upgrade all nodes of a swarm together"
        return "; it does not say which protocol it speaks: read its changes before upgrading a swarm"

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "version": self.here,
            "protocol": self.protocol,
            "newest": self.newest.version,
            "newest_for_this_python": self.newest.fits,
            "newest_protocol": self.newest.protocol,
            "newer": self.newer,
            "same_protocol": self.same_protocol,
            "installed_by": self.installed.way,
            "upgrade": self.installed.upgrade,
            "swarm": None if self.swarm is None else dict(self.swarm),
        }


def upgrade_found(newest: Newest, protocol: int, swarm: Mapping[str, int] | None) -> Upgrade:
    """For this process."""
    return Upgrade(__version__, protocol, newest, installed_here(), swarm)
