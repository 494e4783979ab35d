"""The check of a receipt, step by step. Pure: what needs a model or a network is passed in.

Left to the caller: reading files, the trust file's provenance, and whether the people behind trusted keys are honest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import SystemRandom
from typing import Protocol

from receipts.check import audit, checks, content, times
from receipts.check.dictated import dictated
from receipts.check.logged import check_logged
from receipts.check.outcome import Outcome
from receipts.check.parts import Chooser
from receipts.check.recompute import Limit, default_limit
from receipts.check.replay import Replayer, check_replay
from receipts.check.run import ReceiptRun, assemble
from receipts.check.sequence_check import check_beside, other_untrusted
from receipts.check.token_stats import Scored
from receipts.check.verdict import (
    EXIT_BELOW_LEVEL,
    EXIT_MET,
    EXIT_NOT_CONCLUSIVE,
    LEVEL_NAMES,
    Claim,
    Disclosed,
    Level,
    Requirement,
    Standing,
    Verdict,
)
from receipts.format.document import Document, document_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.log_tiles import LogProof
from receipts.format.salt import Secret
from receipts.format.sign import sha256
from receipts.format.statement import statement_untrusted

_TRUST_LINE = re.compile(r"([0-9a-fA-F]{64})(?:\s+\S.*)?")


class ModelFacts(Protocol):
    """The verifier's own manifest of the model that it expects."""

    @property
    def digest(self) -> str: ...

    @property
    def n_layers(self) -> int: ...

    def weights_digest(self, first: int, last: int) -> str: ...


@dataclass(frozen=True)
class Options:
    """What the verifier brings along; nothing is needed for levels 0 and 1.

    `required`: the least level, whatever reached it; `requirements`: what must have been shown, each for itself.
    `trust`: hex keys; when given, every party of the run must be among them, and only such witnesses raise the level.
    `model`: compare manifest and weights digests. `replayer`, `auditor`: recompute, `audit_rows` frames in all.
    `secrets`: the requester's file, as if disclosed. `beside`: other receipts, whose signers' counters must fit.
    `limit`: gates measured for this model; None: the built-in ones. `log`: proof that the receipt is in a log.
    `chooser`: by which audits choose frames; nodes must not foresee it.
    """

    required: Level = Level.SIGNED
    requirements: frozenset[Requirement] = frozenset()
    trust: frozenset[str] | None = None
    model: ModelFacts | None = None
    replayer: Replayer | None = None
    auditor: audit.Auditor | None = None
    audit_rows: int = 32
    secrets: tuple[Secret, ...] = ()
    beside: tuple[bytes, ...] = ()
    limit: Callable[[str, str], Limit] = default_limit
    log: LogProof | None = None
    chooser: Chooser = field(default_factory=SystemRandom)


@dataclass
class _Progress:
    """What is known so far, so that a refusal can still report it."""

    claims: list[Claim] = field(default_factory=list)
    level: Level | None = None
    met: set[Requirement] = field(default_factory=set)
    run: ReceiptRun | None = None
    disclosed: Disclosed = field(default_factory=Disclosed)
    not_conclusive: list[str] = field(default_factory=list)


def verify(data: bytes, options: Options | None = None) -> Verdict:
    """Check a receipt file. Never raises: a refused receipt is a verdict with a refusal and its exit code."""
    options = options or Options()
    progress = _Progress()
    try:
        _steps(data, options, progress)
    except ReceiptError as exc:
        return Verdict(
            progress.level,
            exc.exit_code,
            exc.refusal,
            str(exc),
            tuple(progress.claims),
            progress.run,
            progress.disclosed,
            int(options.required),
            tuple(progress.not_conclusive),
            frozenset(progress.met),
        )
    exit_code, line = _result(progress, options)
    return Verdict(
        progress.level,
        exit_code,
        None,
        line,
        tuple(progress.claims),
        progress.run,
        progress.disclosed,
        int(options.required),
        tuple(progress.not_conclusive),
        frozenset(progress.met),
    )


def _result(progress: _Progress, options: Options) -> tuple[int, str]:
    assert progress.level is not None and progress.run is not None
    level, outcome = progress.level, progress.run.close.outcome
    line = f"level {int(level)}: {LEVEL_NAMES[level]}"
    if outcome != "complete":
        line += f"; the run {'failed' if outcome == 'failed' else 'was ' + outcome}"
    if own_words := dictated(progress.run, progress.disclosed):
        line += f"; {own_words}"
    if progress.not_conclusive:
        return EXIT_NOT_CONCLUSIVE, f"{line}; not conclusive: {'; '.join(progress.not_conclusive)}"
    if level < options.required:
        return EXIT_BELOW_LEVEL, f"{line}; level {int(options.required)} was required"
    if unmet := sorted(options.requirements - progress.met):
        return EXIT_BELOW_LEVEL, f"{line}; required and not met: {', '.join(unmet)}"
    return EXIT_MET, line


def _steps(data: bytes, options: Options, progress: _Progress) -> None:
    # 1. Bounded parsing; the one layout; readable copy equal to the signed bytes.
    document = document_untrusted(data)

    # 2. Every signature, over the exact bytes, before any statement is read.
    for envelope in document.envelopes:
        envelope.check()

    # 3. Every statement has the form of its kind.
    statements = [statement_untrusted(envelope) for envelope in document.envelopes]
    progress.level = Level.WELL_FORMED

    # 4. They are statements of one run, each in its place, in the order that the requester closed over.
    run = progress.run = assemble(statements)
    count = len(statements)
    progress.claims.append(Claim(Standing.PROVEN, "signatures", f"signatures {count}/{count}"))

    # 5. Plans cover the model once; every stage accepted its part.
    progress.claims += checks.check_layers(run)

    # 6. Counters and hash chains, in this receipt and through all that lie beside it.
    checks.check_counters(run)
    if options.beside:
        others = [other_untrusted(other) for other in options.beside]
        progress.claims += check_beside(run, sha256(data), others)

    # 7. Both ends of every edge agree.
    progress.claims += checks.check_edges(run)

    # 8. Who served what.
    progress.claims += checks.check_served(run)

    # 9. Disclosed values fit their digests; tail and requester agree on the tokens, and on the time it took.
    disclosed = progress.disclosed = content.check_disclosed(run, (*document.disclosed, *options.secrets))
    progress.claims.append(content.output_claim(disclosed))
    progress.claims += content.constraint_claims(run)
    progress.claims += content.check_tokens(run, disclosed, _token_salt(run, document, options))
    progress.claims += times.check_times(run)
    progress.claims.append(content.outcome_claim(run))
    progress.claims.append(content.draft_claim(run))

    # 10. Hardware and software: claims, whoever signed them.
    progress.claims += content.hardware_claims(run)

    # 11. The verifier's own manifest, when there is one.
    progress.claims += _check_model(run, options.model)

    # 12. Trusted keys, when there is a list.
    _check_trust(run, options.trust)
    progress.level = Level.SIGNED

    # 13. Witnesses; only a known one that saw all of the run says more than the parties themselves.
    trusted = options.trust or frozenset()
    progress.claims += times.witness_claims(run, trusted)
    if any(witness.key in trusted and times.seen_by(run, witness) == "run" for witness in run.witnesses):
        progress.level = Level.WITNESSED
        progress.met.add("witness")

    # A transparency log, when one is given.
    if options.log is not None:
        progress.claims.append(check_logged(run, options.log, options.trust))

    # 14. Recomputation: opened rows, then the whole run.
    _recompute(run, disclosed, options, progress)


def _token_salt(run: ReceiptRun, document: Document, options: Options) -> bytes | None:
    found = (secret for secret in (*document.disclosed, *options.secrets) if secret.digest == run.close.tokens)
    return next((secret.salt for secret in found), None)


def _check_model(run: ReceiptRun, model: ModelFacts | None) -> list[Claim]:
    if model is None:
        return [Claim(Standing.CLAIMED, "model", f"{run.order.model.name} {run.order.model.manifest[:16]}")]
    if run.order.model.manifest != model.digest:
        raise ReceiptError(
            Refusal.MANIFEST, f"the order names {run.order.model.manifest[:16]}, the model here is {model.digest[:16]}"
        )
    if run.order.model.layers != model.n_layers:
        raise ReceiptError(Refusal.LAYERS_BEYOND, f"{run.order.model.layers} layers, the model has {model.n_layers}")
    for epoch in run.epochs:
        for node, accept in epoch.accepts.items():
            if accept.weights != model.weights_digest(accept.first, accept.last):
                span = f"[{accept.first}, {accept.last})"
                raise ReceiptError(Refusal.WEIGHTS, f"{checks.short(node)}: weights of layers {span} are others")
        if epoch.own is not None:
            head, tail = model.weights_digest(0, epoch.own.head), model.weights_digest(epoch.own.tail, model.n_layers)
            if (epoch.own.head_weights, epoch.own.tail_weights) != (head, tail):
                raise ReceiptError(Refusal.WEIGHTS, "the requester's weights of its own layers are others")
    return [
        Claim(Standing.PROVEN, "model", f"the manifest is the verifier's own ({model.digest[:16]})"),
        Claim(Standing.CLAIMED, "model", f"{run.order.model.name} is the requester's name for it"),
        Claim(Standing.CLAIMED, "weights", "every stage claims the manifest's weights"),
    ]


def _check_trust(run: ReceiptRun, trust: frozenset[str] | None) -> None:
    if trust is None:
        return
    for who, key in [("requester", run.requester), *(("node", node) for node in run.nodes())]:
        if key not in trust:
            raise ReceiptError(Refusal.UNTRUSTED, f"{who} {key} is not in the trust file")


def _recompute(run: ReceiptRun, disclosed: Disclosed, options: Options, progress: _Progress) -> None:
    if options.auditor is None and options.replayer is None:
        progress.claims.append(Claim(Standing.NOT_CHECKED, "recompute", "no row was recomputed (--audit, --replay)"))
        return
    try:
        limit = options.limit(run.order.dtype, run.order.wire)
        own_ties = options.limit(run.order.dtype, run.order.dtype).tie_ppm
    except ReceiptError as exc:
        progress.not_conclusive.append(exc.claim)
        return
    audited = replayed = None
    if options.auditor is not None:
        count, chooser = options.audit_rows, options.chooser
        outcome = audit.check_audit(run, disclosed, options.auditor, limit, own_ties, count, chooser)
        _take(outcome, Level.SAMPLED if not run.order.own_layers else Level.SIGNED, progress)
        if outcome.conclusive and not run.order.own_layers:
            progress.met.add("audit")
        audited = outcome.exact
    if options.replayer is not None:
        scored = Scored(options.replayer, limit)
        try:
            outcome = check_replay(run, disclosed, scored, limit)
        finally:
            progress.claims += scored.claims
        _take(outcome, Level.REPLAYED, progress)
        if outcome.conclusive:
            progress.met.add("replay")
            replayed = outcome.exact
        if outcome.decoded:
            claim = content.output_claim(disclosed)
            progress.claims[progress.claims.index(claim)] = content.output_claim(disclosed, decoded=True)
    elif run.order.own_layers:
        own = f"{checks.own_spans(run.order)} are the requester's own: no node opens them, only a replay covers them"
        progress.claims.append(Claim(Standing.NOT_CHECKED, "audit", own))
        progress.not_conclusive.append(own)
    # A replay within limits takes nothing from opened rows that are equal to the last bit, nor does an exact one make
    # up for opened rows that are not.
    if audited is not False and (replayed or (audited and "audit" in progress.met)):
        progress.met.add("exact")


def _take(outcome: Outcome, level: Level, progress: _Progress) -> None:
    progress.claims += outcome.claims
    if outcome.conclusive:
        progress.level = max(level, progress.level or level)
    else:
        progress.not_conclusive.append(outcome.why)


def trust_untrusted(text: str) -> frozenset[str]:
    """Keys of a trust file: one hex key per line, then anything; `#` begins a comment. Raises ReceiptError."""
    keys = set()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        match = _TRUST_LINE.fullmatch(line)
        if match is None:
            raise ReceiptError(Refusal.UNREADABLE, f"trust file line {number}: expected a key of 64 hex digits")
        keys.add(match[1].lower())
    return frozenset(keys)
