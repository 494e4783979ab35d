"""What of a receipt stands in a transparency log: the close, which binds every statement before it, or a node's end."""

from __future__ import annotations

from collections.abc import Mapping

from receipts.check.checks import short
from receipts.check.run import ReceiptRun
from receipts.check.verdict import Claim, Standing
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.log_tiles import LogProof
from receipts.format.sign import SignedEnvelope
from receipts.format.statement import payload_type

KINDS = ("close", "end")
_TYPES = {payload_type(kind): kind for kind in KINDS}


def entry_of(envelope: SignedEnvelope) -> bytes | None:
    """The entry of a statement that is logged: its kind and its digest; None for one that is not."""
    kind = _TYPES.get(envelope.payload_type)
    return f"wanswarm {kind} {envelope.digest}".encode() if kind is not None else None


def entries_of(run: ReceiptRun) -> Mapping[bytes, str]:
    """Entries by which this receipt may stand in a log, the close first, each with what it is."""
    found = {}
    for kind in KINDS:
        for statement in run.statements:
            if statement.body.kind == kind:
                name = "the close" if kind == "close" else f"the end of {short(statement.signer)}"
                found[f"wanswarm {kind} {statement.digest}".encode()] = name
    return found


def check_logged(run: ReceiptRun, proof: LogProof, trust: frozenset[str] | None) -> Claim:
    """That the receipt is in a log, and whose. Raises ReceiptError(LOG)."""
    why: ReceiptError | None = None
    for entry, name in entries_of(run).items():
        try:
            checkpoint = proof.check(entry)
        except ReceiptError as exc:
            why = why or exc
            continue
        key = checkpoint.key.hex()
        whose = "the requester" if key == run.requester else "a node of the run" if key in run.nodes() else "a stranger"
        if trust is not None and key in trust:
            whose += ", a trusted key"
        text = f"{name} is entry {proof.index} of {checkpoint.size} in the log of {short(key)} ({whose})"
        return Claim(Standing.PROVEN, "log", text, figures={"index": proof.index, "size": checkpoint.size})
    raise why or ReceiptError(Refusal.LOG, "the receipt has no statement that is logged")
