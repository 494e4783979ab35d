"""Whom requests may pass through: nodes to leave out, nodes to keep to, and how many owners must share them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.errors import CoverageError, UsageError
from swarm.base.nodeid import SHORT_CHARS, TEXT_CHARS
from swarm.base.option import Number, option

if TYPE_CHECKING:
    from swarm.planner.fleet import Member

MOST_TRUSTED = 10_000
ROUTE = "whom requests pass through"


def excluded_of(given: Sequence[str]) -> tuple[str, ...]:
    """Nodes and owners to leave out. Raises UsageError for an empty name."""
    if any(not name.strip() for name in given):
        raise UsageError("expected a node or an owner after --exclude, found nothing")
    return tuple(name.strip() for name in given)


def trusted_of(given: Sequence[str]) -> frozenset[str] | None:
    """Nodes to keep to: each value is a node id or a file of such, one a line, # before a remark; none: anybody.

    Raises UsageError.
    """
    trusted: list[str] = []
    for value in given:
        trusted += [value] if _is_id(value) else _read_list(value)
    for name in trusted:
        if not _is_id(name) or len(name) != TEXT_CHARS:
            raise UsageError(
                f"expected full node ids of {TEXT_CHARS} hexadecimal digits in --only, found {name[:70]!r}; "
                "swarm status --json shows them"
            )
    if len(trusted) > MOST_TRUSTED:
        raise UsageError(f"expected at most {MOST_TRUSTED} nodes in --only, found {len(trusted)}")
    if given and not trusted:
        raise UsageError("expected at least one node id in --only, found none; leave it away to trust all")
    return frozenset(trusted) if given else None


def fingerprint_of(text: str) -> str:
    """Which kernel fingerprint nodes must have; "": any. Raises UsageError."""
    if text and text not in ("same", "own") and not _is_id(text):
        raise UsageError(
            f"expected same, own or a fingerprint of at least {SHORT_CHARS} hexadecimal digits in "
            f"--require-fingerprint, found {text[:70]!r}; swarm status --json shows them"
        )
    return text


def _is_id(text: str) -> bool:
    return SHORT_CHARS <= len(text) <= TEXT_CHARS and re.fullmatch("[0-9a-f]+", text) is not None


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"expected a node id or a file of node ids after --only, found {path[:80]!r}") from error
    return [line for raw in lines if (line := raw.partition("#")[0].strip())]


@dataclass(frozen=True)
class RouteRules:
    """Constraints on every route of a requester.

    exclude   node ids, beginnings of node ids of at least 8 digits, or owners' names
    only      full node ids; None: anybody. Not owners' names, which nodes give themselves
    owners    at least so many different owners in a route; a node without one counts as its own
    kernels   fingerprint that all nodes of a route must have: "same" for any that all of them share, "own" for one of
              this machine's, or its first 8 digits at least; "": none is asked for
    """

    exclude: tuple[str, ...] = option(
        (),
        "never this node (the first 8 digits of its id suffice) or this owner's (may be given several times)",
        "NODE",
        repeat=True,
        join=excluded_of,
        group=ROUTE,
    )
    only: frozenset[str] | None = option(
        None,
        "only these nodes: a full node id, or a file with one a line (may be given several times)",
        "NODE",
        repeat=True,
        join=trusted_of,
        group=ROUTE,
    )
    owners: int = option(
        1,
        "nodes of at least K different owners share each request (default: %(default)s)",
        "K",
        read=Number(int, 1, 64, "a number of owners"),
        group=ROUTE,
    )
    kernels: str = option(
        "",
        "only nodes that compute alike to the last bit, by the kernel fingerprint that each measured: same (all "
        "of a request share one), own (one of this machine's, so that it can audit them bit for bit), or a fingerprint",
        "WHICH",
        name="--require-fingerprint",
        read=fingerprint_of,
        group=ROUTE,
    )

    def fingerprints(
        self, members: Sequence[Member], own: Callable[[], frozenset[str]], lost: frozenset[str] = frozenset()
    ) -> list[str]:
        """Fingerprints that a whole route may have, when `kernels` asks for one.

        own: those of this machine, measured when they are needed. lost: those of nodes that the run lost, if any is
        known: what was begun with them is gone on with by them. Raises CoverageError when nobody has one that fits.
        """
        known = {member.kernels for member in members if member.kernels and member.layers}
        fit = {digest for digest in known if self.kernels in ("same", "own") or digest.startswith(self.kernels)}
        if self.kernels == "own":
            fit &= own()
        if lost:
            fit &= lost
        if not fit:
            asked = {"same": "that could be shared", "own": "of this machine"}.get(self.kernels, self.kernels[:16])
            there = ", ".join(sorted(digest[:8] for digest in known)) or "none"
            raise CoverageError(
                f"no node has a kernel fingerprint {asked}, found {there}; wait for such nodes, or leave "
                "--require-fingerprint away"
            )
        return sorted(fit)

    def excluded(self, members: Iterable[Member]) -> frozenset[str]:
        """Names of the members that no request may touch."""
        return frozenset(member.node for member in members if self._barred(member))

    def _barred(self, member: Member) -> bool:
        if self.only is not None and member.node not in self.only:
            return True
        return any(member.owner == name or (_is_id(name) and member.node.startswith(name)) for name in self.exclude)


def read_rules(exclude: Sequence[str], only: Sequence[str], owners: int, kernels: str = "") -> RouteRules:
    """The rules of what a program or a command line was given. Raises UsageError."""
    return RouteRules(excluded_of(exclude), trusted_of(only), owners, fingerprint_of(kernels))
