"""Receipts: the signed account of one run, and its check. Pure: bytes in, verdict out; standard library and PyNaCl.

A ring uses `RequesterRecord`, `StageRecord` and `WitnessRecord`; a verifier uses `verify` and `text_report`
(docs/python.md), or `python -m receipts`.
"""

from receipts.check.report import text_report
from receipts.check.timeline import svg_timeline, timeline
from receipts.check.verdict import Verdict
from receipts.check.verify import Options, verify
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Hardware, Model, PlannedStage, Sampler, Software
from receipts.format.salt import Secret
from receipts.format.statement import Author, ChainHead
from receipts.record.edge import EdgeLog
from receipts.record.epoch import Opening, opening_untrusted
from receipts.record.own import OwnLayers, OwnLog
from receipts.record.requester import PUBLIC, RequesterRecord
from receipts.record.stage import StageRecord
from receipts.record.tail import TailLog
from receipts.record.witness import WitnessRecord

__all__ = [
    "PUBLIC",
    "Author",
    "ChainHead",
    "EdgeLog",
    "Hardware",
    "Model",
    "Opening",
    "Options",
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
    "Verdict",
    "WitnessRecord",
    "opening_untrusted",
    "svg_timeline",
    "text_report",
    "timeline",
    "verify",
]
