"""Receipts: the signed account of one run, and its check. Pure: bytes in, verdict out; standard library and PyNaCl.

A ring uses `RequesterRecord`, `StageRecord` and `WitnessRecord`; a verifier uses `verify`.
"""

from receipts.edge import EdgeLog
from receipts.epoch import Opening, opening_untrusted
from receipts.errors import ReceiptError, Refusal
from receipts.opening import Hardware, Model, PlannedStage, Sampler, Software
from receipts.own import OwnLayers, OwnLog
from receipts.requester import RequesterRecord
from receipts.salt import Secret
from receipts.stage import StageRecord
from receipts.statement import Author, ChainHead
from receipts.tail import TailLog
from receipts.witness import WitnessRecord

__all__ = [
    "Author",
    "ChainHead",
    "EdgeLog",
    "Hardware",
    "Model",
    "Opening",
    "OwnLayers",
    "OwnLog",
    "PlannedStage",
    "ReceiptError",
    "Refusal",
    "RequesterRecord",
    "Sampler",
    "Secret",
    "Software",
    "StageRecord",
    "TailLog",
    "WitnessRecord",
    "opening_untrusted",
]
