"""What a check found: every claim of the receipt with its standing, a level, and an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Literal

from receipts.check.run import ReceiptRun
from receipts.format.errors import Refusal
from receipts.format.salt import Secret
from receipts.record.tail import Drawn


class Standing(Enum):
    """How well a claim is founded; the order is the order of the report."""

    PROVEN = "proven"
    """By cryptography or recomputation, whoever signed."""
    COSIGNED = "co-signed"
    """Both parties who measured it signed the same."""
    WITNESSED = "witnessed"
    """A third party signed that it saw it."""
    CLAIMED = "claimed"
    """One party says so."""
    NOT_CHECKED = "not checked"
    """It could be checked, but was not."""


class Level(IntEnum):
    WELL_FORMED = 0
    SIGNED = 1
    WITNESSED = 2
    SAMPLED = 3
    REPLAYED = 4


Requirement = Literal["witness", "audit", "replay", "exact"]
"""What a verifier may ask for, each for itself: a trusted witness of order and close, rows opened and recomputed by
every stage with every kept token drawn from the published text, the whole run recomputed, and equality to the last bit:
of every part that an audit opened, or, where none was opened, of the whole run."""
REQUIREMENTS: tuple[Requirement, ...] = ("witness", "audit", "replay", "exact")

LEVEL_NAMES: Mapping[Level, str] = {
    Level.WELL_FORMED: "well formed",
    Level.SIGNED: "signed and consistent",
    Level.WITNESSED: "witnessed",
    Level.SAMPLED: "sampled rows recomputed",
    Level.REPLAYED: "recomputed whole",
}

EXIT_MET = 0
EXIT_BELOW_LEVEL = 3
EXIT_NOT_CONCLUSIVE = 4


@dataclass(frozen=True)
class Claim:
    """One thing that the receipt says. `subject` is a short name, `about` the node or edge ("" for the run).

    `figures`: the numbers in the text, by name, for programs.
    """

    standing: Standing
    subject: str
    text: str
    about: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Disclosed:
    """Private values in the clear, each checked against its signed digest; None where not disclosed."""

    prompt: tuple[int, ...] | None = None
    tokens: Drawn | None = None
    text: str | None = None
    plain: Mapping[str, Secret] = field(default_factory=dict)
    """Addresses and device UUIDs by the digest that was signed."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of `verify`. `run` is None when the receipt could not be read as one."""

    level: Level | None
    """None when the receipt was refused before its statements could be read."""
    exit_code: int
    refusal: Refusal | None
    line: str
    """One line: the result, or the claim that was refused."""
    claims: tuple[Claim, ...]
    run: ReceiptRun | None
    disclosed: Disclosed
    required: int = 0
    not_conclusive: tuple[str, ...] = ()
    met: frozenset[Requirement] = frozenset()

    def standing_of(self, subject: str, about: str = "") -> Standing | None:
        """Standing of one claim, or None when the receipt does not make it."""
        for claim in self.claims:
            if claim.subject == subject and claim.about == about:
                return claim.standing
        return None

    def as_json(self) -> dict[str, Any]:
        """For `swarm verify --json`; stable names."""
        return {
            "level": int(self.level) if self.level is not None else None,
            "level_name": LEVEL_NAMES[self.level] if self.level is not None else None,
            "required_level": self.required,
            "met": sorted(self.met),
            "exit_code": self.exit_code,
            "refusal": self.refusal.word if self.refusal is not None else None,
            "result": self.line,
            "not_conclusive": list(self.not_conclusive),
            "claims": [
                {"standing": c.standing.value, "subject": c.subject, "about": c.about, "text": c.text}
                | ({"figures": dict(c.figures)} if c.figures else {})
                for c in self.claims
            ],
        }
