"""Receipts: the signed account of one run, and its check. Pure: bytes in, verdict out; standard library and PyNaCl.

A ring uses `RequesterRecord`, `StageRecord` and `WitnessRecord`; a verifier uses `verify`.
"""

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Hardware, Model, PlannedStage, Sampler, Software
from receipts.format.salt import Secret
from receipts.format.statement import Author, ChainHead
from receipts.record.edge import EdgeLog
from receipts.record.epoch import Opening, opening_untrusted
from receipts.record.own import OwnLayers, OwnLog
from receipts.record.requester import RequesterRecord
from receipts.record.stage import StageRecord
from receipts.record.tail import TailLog
from receipts.record.witness import WitnessRecord

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
