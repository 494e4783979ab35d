"""The one error of the package, and the numbered reasons for which a receipt is refused."""

from __future__ import annotations

from enum import Enum


class Refusal(Enum):
    """Why a receipt is refused: a stable word, the exit code of `swarm verify`, and what was wrong.

    Codes 0 to 4 belong to the verdict as a whole (0 met, 1 a check failed, 2 unreadable or misuse, 3 authentic but
    below the required level, 4 replay not conclusive). Each check that fails has its own code from 10 on.
    Codes are never reused for another meaning.
    """

    UNREADABLE = ("unreadable", 2, "not a JSON file in UTF-8")
    SIZE = ("size", 10, "larger than a receipt may be")
    NESTING = ("nesting", 11, "nested deeper than a receipt may be")
    DUPLICATE_KEY = ("duplicate-key", 12, "a JSON object names one key twice")
    NUMBER = ("number", 13, "a number that is not an integer below 2^53")
    LAYOUT = ("layout", 14, "bytes differ from the one layout a receipt has")
    VERSION = ("version", 15, "unknown format or version")
    EMPTY = ("empty", 16, "no envelope at all")
    SHAPE = ("shape", 17, "a field is missing, unknown, or of the wrong form")
    COUNT = ("count", 18, "more entries than a receipt may hold")
    PAYLOAD_TYPE = ("payload-type", 19, "a statement signed under the type of another kind")
    SIGNATURE = ("signature", 20, "a signature does not fit its bytes")
    SIGNER = ("signer", 21, "signed by a key that has no such part in the run")
    FOREIGN = ("foreign", 22, "a statement of another run")
    DUPLICATED = ("duplicated", 23, "one statement appears twice")
    MISSING = ("missing", 24, "a statement that the run needs is not there")
    SEQUENCE = ("sequence", 25, "statements stand in another order than the requester signed")
    PLAN = ("plan", 26, "a stage accepted something else than the plan")
    LAYERS_MISSING = ("layers-missing", 27, "layers that no stage computed")
    LAYERS_OVERLAP = ("layers-overlap", 28, "layers that two stages computed")
    LAYERS_BEYOND = ("layers-beyond", 29, "layers that the model does not have")
    EDGE_ROOT = ("edge-root", 30, "the two ends of an edge signed different traffic")
    EDGE_RTT = ("edge-rtt", 31, "the two ends of an edge signed different round-trip times")
    EDGE_ENDS = ("edge-ends", 32, "an edge does not join the two nodes of the plan")
    COUNTER = ("counter", 33, "a signer's counter goes back")
    CHAIN = ("chain", 34, "a signer's hash chain is broken")
    TOKENS = ("tokens", 35, "tokens differ from what was signed")
    TEXT = ("text", 36, "text differs from what was signed")
    PROMPT = ("prompt", 37, "prompt differs from what was signed")
    MANIFEST = ("manifest", 38, "another model than the one given")
    WEIGHTS = ("weights", 39, "a stage's weights digest is not the manifest's")
    UNTRUSTED = ("untrusted", 40, "signed by a key that is not in the trust file")
    REPLAY = ("replay", 41, "recomputing gives other tokens")
    AUDIT = ("audit", 42, "an opened row was not computed as claimed")
    TIMES = ("times", 43, "requester and tail disagree on how long it took")
    DISCLOSURE = ("disclosure", 44, "a disclosed value fits no digest in the receipt")
    READABLE = ("readable", 45, "the readable copy differs from the signed bytes")
    SERVED = ("served", 46, "the requester's account of who served what differs from the stages'")
    WITNESS = ("witness", 47, "a witness's statement does not fit the run")
    PROOF = ("proof", 48, "an opened leaf is not under the signed root")
    OPENING = ("opening", 49, "an audit answer is malformed or incomplete")
    LOG = ("log", 60, "not in the transparency log, or its proof does not hold")

    def __init__(self, word: str, exit_code: int, meaning: str) -> None:
        self.word = word
        self.exit_code = exit_code
        self.meaning = meaning


def printable(text: str) -> str:
    """Text of strangers made safe for terminals and drawings: no control, bidirectional or unassigned characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


class ReceiptError(Exception):
    """A receipt, envelope, statement or proof that is refused: says which claim and why, in one line."""

    def __init__(self, refusal: Refusal, claim: str) -> None:
        line = printable(" ".join(claim.split()))
        super().__init__(f"{refusal.word}: {line}")
        self.refusal = refusal
        self.claim = line

    @property
    def exit_code(self) -> int:
        return self.refusal.exit_code
