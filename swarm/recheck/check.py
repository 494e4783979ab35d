"""A whole verification: what the receipt itself shows, then what a model and its nodes add."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from receipts.check.run import ReceiptRun
from receipts.check.verdict import Verdict
from receipts.check.verify import Options, verify
from swarm.base.address import Address
from swarm.base.config import MemberConfig
from swarm.base.errors import ModelError, UsageError
from swarm.base.events import Report, silent
from swarm.model.compiling import Compiler
from swarm.model.files.checkpoint import Checkpoint, end_tokens, load_tokenizer, open_model
from swarm.model.files.named import DEFAULT_MODEL, NAMED
from swarm.model.files.store import ModelStore
from swarm.model.held import Vocabulary
from swarm.model.own_kernels import KernelsHere
from swarm.model.text.decoder import PlainText
from swarm.recheck.auditor import RingAuditor
from swarm.recheck.dial import opener
from swarm.recheck.exactly import fingerprints_of, replaying_kernels
from swarm.recheck.limits import limit_of, load_limits
from swarm.recheck.replayer import ModelReplayer
from swarm.recheck.second import Seconds, Via


@dataclass(frozen=True)
class CheckConfig:
    """What to check beyond the receipt.

    options    what the verifier brings along
    model      reference of the verifier's own copy; None: the default model where the receipt is of it
    audit      frames to have opened, over all stages; 0: none
    addresses  where nodes (hex) can be dialled; the others are looked up in the swarm of `member`
    via        a third node (hex), to recompute what is audited besides
    """

    models: Path
    options: Options = Options()
    model: str | None = None
    replay: bool = False
    audit: int = 0
    addresses: Mapping[str, Sequence[Address]] = field(default_factory=dict)
    member: MemberConfig | None = None
    via: str | None = None


async def check(data: bytes, config: CheckConfig, report: Report = silent) -> Verdict:
    """Verify a receipt. Raises UsageError when what was asked for cannot be done here."""
    verdict = await asyncio.to_thread(verify, data, config.options)
    recompute = config.replay or config.audit
    if verdict.refusal is not None or verdict.run is None or not (recompute or config.model):
        return verdict
    store = ModelStore(config.models)
    ref = config.model or _usual_model(verdict.run, store)
    checkpoint = await asyncio.to_thread(_open, ref, store, None if recompute else (0, 1), report)
    options = replace(config.options, model=checkpoint.manifest)
    if not recompute or verdict.run.order.model.manifest != checkpoint.manifest.digest:
        return await asyncio.to_thread(verify, data, options)
    limits = load_limits(config.models, checkpoint.manifest.digest)
    options = replace(options, limit=limit_of(limits))
    kernels = KernelsHere(checkpoint.manifest, checkpoint.config)
    compiler = await asyncio.to_thread(_compiler, verdict.run, checkpoint, ref, store, report)
    with closing(compiler) if compiler is not None else nullcontext():
        if config.replay:
            decoder = PlainText(await asyncio.to_thread(load_tokenizer, ref, store, report))
            own = await asyncio.to_thread(replaying_kernels, verdict.run, kernels)
            replayer = ModelReplayer(checkpoint, decoder, report=report, compiler=compiler, own=own)
            options = replace(options, replayer=replayer)
        if not config.audit:
            return await asyncio.to_thread(verify, data, options)
        nodes = list(dict.fromkeys(node for epoch in reversed(verdict.run.epochs) for node in epoch.ends))
        nodes += [config.via] if config.via is not None and config.via not in nodes else []
        async with opener(nodes, config.addresses, config.member, report) as asked:
            signed = fingerprints_of(verdict.run)
            parties = {verdict.run.requester, *verdict.run.nodes()}
            seconds = Seconds(Via(config.via, asked), parties) if config.via is not None else None
            auditor = RingAuditor(
                checkpoint,
                asked,
                report=report,
                compiler=compiler,
                fingerprints=signed,
                kernels=kernels,
                seconds=seconds,
            )
            options = replace(options, auditor=auditor, audit_rows=config.audit)
            found = await asyncio.to_thread(verify, data, options)
            return replace(found, claims=(*found.claims, *seconds.claims())) if seconds is not None else found


def _compiler(run: ReceiptRun, checkpoint: Checkpoint, ref: str, store: ModelStore, report: Report) -> Compiler | None:
    """What reads the run's constraint; None where it has none."""
    if run.order.held_to is None:
        return None
    tokenizer, ends = load_tokenizer(ref, store, report), end_tokens(checkpoint, store, ref)
    return Compiler(lambda: Vocabulary(tokenizer, checkpoint.manifest.vocab_size, ends))


def _usual_model(run: ReceiptRun, store: ModelStore) -> str:
    """The model that is at hand without being named: the default one, or one with a short name that lies here. A
    stranger's receipt must not choose what is fetched."""
    name = run.order.model.name
    if name == DEFAULT_MODEL:
        return name
    if name in NAMED:
        try:
            store.path(name)
        except ModelError as error:
            raise UsageError(f"the receipt is of model {name!r}, not here: --model {name} fetches it") from error
        return name
    raise UsageError(f"the receipt is of model {name!r}; say where yours is with --model REF")


def _open(ref: str, store: ModelStore, layers: tuple[int, int] | None, report: Report) -> Checkpoint:
    try:
        return open_model(ref, store, layers, report)
    except ModelError as error:
        raise UsageError(f"cannot recompute: {error}") from error
