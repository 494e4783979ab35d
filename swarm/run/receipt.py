"""The requester's account of one run, from the order to the file."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from receipts import PUBLIC, Model, OwnLayers, PlannedStage, ReceiptError, RequesterRecord
from receipts.format.sign import sha256
from swarm.base.errors import PeerError, RunError, SwarmError
from swarm.base.files import write_whole
from swarm.net.channel.message import Message
from swarm.ring.opening import StagePlan
from swarm.ring.order_check import held_to_of, sampler_of, shaped_of
from swarm.ring.receipt_log import head_bytes
from swarm.ring.signer import ReceiptSigner, unix_us
from swarm.ring.witness_service import WitnessRequest
from swarm.run.api import RunRequest, RunResult
from swarm.run.last_receipt import SECRETS, note_last
from swarm.run.receipt_pruning import Pruner
from swarm.run.trace import TRACE, RunTrace

PREVIOUS = "previous"
WITNESS_TIMEOUT_S = 3.0
OUTCOMES = {"stop": "complete", "length": "complete", "cancelled": "cancelled"}


class Parties(Protocol):
    """Whoever else takes part in a receipt; `swarm.client.router.Routes` knows the members."""

    def ordered_dtype(self, stages: Sequence[StagePlan]) -> str:
        """What an order says that the stages compute in."""

    def witnesses(self, stages: Sequence[StagePlan], count: int | None) -> Sequence[bytes]:
        """Nodes outside the ring to countersign: `count` of them, or as many as is usual."""

    async def ask_witness(self, node: bytes, asked: WitnessRequest) -> bytes:
        """Send {"order": envelope}, later {"close": envelope, "about": sha256 of the order's}; the node's envelope.

        Raises PeerError.
        """

    def unlike(self, signed: Sequence[tuple[bytes, str | None]]) -> tuple[bytes, str] | None:
        """Of stages and the kernel fingerprints that they accepted under, which one a run may not have, and why."""


@dataclass(frozen=True)
class ReceiptPlan:
    """Where receipts go, and what they name: model, layers, and who takes part."""

    folder: Path
    notary: ReceiptSigner
    model: str
    n_layers: int
    parties: Parties
    pruner: Pruner | None = None


class ReceiptUnwritten(RunError):
    """A run's receipt could not be written; its answer is whole."""


class UnlikeStageError(PeerError):
    """Stage `node` accepted under another kernel fingerprint than the run may have."""

    def __init__(self, node: bytes, text: str) -> None:
        super().__init__(text)
        self.node = node


class RunAccount:
    """Orders, re-plans, closes. One per run; `link` traffic is told with `sent` and `received`."""

    def __init__(
        self, plan: ReceiptPlan, request: RunRequest, stages: Sequence[StagePlan], wire: str, run_id: str
    ) -> None:
        self._plan, self._request, self._run_id = plan, request, run_id
        self._started = time.monotonic()
        self._witnesses: list[bytes] = []
        self._fingerprints: list[tuple[bytes, str | None]] = []
        previous = plan.folder / PREVIOUS
        self.record = RequesterRecord(
            plan.notary.author,
            model=Model(plan.model, plan.notary.manifest, plan.n_layers),
            dtype=plan.parties.ordered_dtype(stages),
            wire=wire,
            sampler=sampler_of(request.sampling),
            prompt=list(request.prompt_ids),
            max_tokens=request.max_tokens,
            plan=_planned(stages),
            time_us=unix_us(),
            random=secrets.token_bytes,
            previous_receipt=previous.read_text("ascii").strip() if previous.is_file() else None,
            executor=plan.notary.hasher,
            own=_own(plan, request.private),
            held_to=held_to_of(request.sampling),
            shaped=shaped_of(request.sampling),
        )
        self.header: dict[str, Any] = self.record.open_header()

    def replan(self, stages: Sequence[StagePlan], position: int, lost: Sequence[bytes], reason: str) -> None:
        """Another route from `position` on."""
        for stage in stages:
            if stage.node in self._witnesses:
                self._witnesses.remove(stage.node)
                self.record.dismiss(stage.node.hex())
        names = [node.hex() for node in lost]
        self.header = self.record.replan(_planned(stages), position, names, reason, unix_us())

    def opened(self, header: Mapping[str, Any]) -> None:
        """Every stage accepted; this news comes two ways. Raises PeerError when one of them did not in truth,
        UnlikeStageError when one did under another kernel fingerprint than the run may have."""
        try:
            accepts = self.record.opened_untrusted(header)
        except ReceiptError as error:
            raise PeerError(f"expected every stage's acceptance of the order, found {error}") from error
        plan = self.record.opening.plan
        signed = [(bytes.fromhex(s.node), accept.fingerprint) for s, accept in zip(plan, accepts, strict=True)]
        if unlike := self._plan.parties.unlike([*self._fingerprints, *signed]):
            raise UnlikeStageError(*unlike)
        self._fingerprints = list(dict.fromkeys([*self._fingerprints, *signed]))

    def sent(self, seq: int, message: Message) -> None:
        """A frame goes to the head."""
        self.record.outbound.frame(seq, head_bytes(message), message.body)

    def received(self, seq: int, message: Message) -> None:
        """An answer came from the tail."""
        self.record.inbound.frame(seq, head_bytes(message), message.body)

    async def witness_order(self, stages: Sequence[StagePlan]) -> None:
        """Ask nodes outside the ring to countersign the order; those that do not answer are left out."""
        for node in self._plan.parties.witnesses(stages, self._request.witnesses):
            try:
                async with asyncio.timeout(WITNESS_TIMEOUT_S):
                    signed = await self._plan.parties.ask_witness(node, WitnessRequest(self.record.order.to_bytes()))
                self.record.witnessed_untrusted(signed, "order")
                self._witnesses.append(node)
            except (SwarmError, ReceiptError, TimeoutError):
                continue

    async def write(self, result: RunResult, rows: Mapping[str, int], trace: RunTrace, where: Path | None) -> Path:
        """Sign the close, have it witnessed, and write the file. Raises ReceiptUnwritten."""
        outcome = OUTCOMES.get(result.finish_reason, "failed")
        signed: list[bytes] = []
        while True:
            named = len(self._witnesses)
            close = self.record.close(
                tokens=list(result.token_ids),
                text=result.text,
                finish_reason=result.finish_reason,
                time_us=unix_us(),
                first_token_us=int(result.ttft_seconds * 1e6),
                last_token_us=int(result.seconds * 1e6),
                elapsed_us=int(result.seconds * 1e6),
                draft=dict(rows),
                drafter=result.drafter,
                speculation=result.speculation,
                witnesses=[node.hex() for node in self._witnesses],
                outcome=outcome,
            )
            signed = await self._witness_close(close.to_bytes())
            if len(signed) == named:
                break
        for envelope in signed:
            self.record.witnessed_untrusted(envelope, "close")
        show = frozenset[str]() if self._request.private_text else PUBLIC
        path = self._save(self.record.receipt(show), trace.to_bytes(), where)
        if self._plan.pruner is not None:
            await self._plan.pruner.prune(time.monotonic(), time.time())
        return path

    async def _witness_close(self, close: bytes) -> list[bytes]:
        """Envelopes of all witnesses; one that fails is struck off, and the close must be signed again."""
        signed = []
        for node in list(self._witnesses):
            try:
                async with asyncio.timeout(WITNESS_TIMEOUT_S):
                    about = sha256(self.record.order.to_bytes())
                    signed.append(await self._plan.parties.ask_witness(node, WitnessRequest(close=close, about=about)))
            except (SwarmError, TimeoutError):
                self._witnesses.remove(node)
        return signed

    def _save(self, receipt: bytes, trace: bytes, where: Path | None) -> Path:
        folder = self._plan.folder
        path = where or folder / f"{self._run_id}.json"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, receipt)
            write_whole(path.with_suffix(SECRETS), self.record.secrets_file())
            write_whole(path.with_suffix(TRACE), trace)
            if where is not None:
                note_last(folder, path)
            write_whole(folder / PREVIOUS, hashlib.sha256(receipt).hexdigest().encode())
        except OSError as error:
            text = (
                f"cannot write the receipt {path}: {error.strerror or error}; free space, or choose another --receipt"
            )
            raise ReceiptUnwritten(text) from error
        return path


def _own(plan: ReceiptPlan, count: int) -> OwnLayers | None:
    """What is said of the layers that this process computes itself, `count` at either end."""
    if not count:
        return None
    notary, layers = plan.notary, plan.n_layers
    return OwnLayers(count, notary.weights(0, count), notary.weights(layers - count, layers), notary.software)


def _planned(stages: Sequence[StagePlan]) -> list[PlannedStage]:
    return [PlannedStage(stage.node.hex(), stage.first, stage.last) for stage in stages]
