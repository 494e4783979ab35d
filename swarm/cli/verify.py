"""`swarm verify`: what a receipt proves."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from receipts.check.verdict import REQUIREMENTS, Level, Requirement, Verdict
from receipts.check.verify import Options, trust_untrusted, verify
from receipts.format.errors import ReceiptError
from receipts.format.salt import Secret
from swarm.base.config import DEFAULT_MODEL, MemberConfig
from swarm.base.errors import UsageError
from swarm.base.files import write_whole
from swarm.base.option import Number, build, option
from swarm.base.paths import file_to_write, read_path, stream_to_write
from swarm.cli.common import add_member_options, member_config, models_dir, say, state_dir
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser
from swarm.recheck import files
from swarm.run.last_receipt import BESIDE, last_receipt

if TYPE_CHECKING:
    from receipts.format.log_tiles import LogProof
    from swarm.base.address import Address

BEYOND = "beyond the receipt itself"
STDIN = Path("-")
MOST_BYTES = 256_000_000
"""Larger than any receipt; a pipe that brings more brings something else."""


def requirements(text: str) -> frozenset[Requirement]:
    """witness,audit,replay,exact: some of them. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    found = frozenset(known for known in REQUIREMENTS if known in words)
    if len(found) != len(words):
        raise UsageError(f"expected some of {','.join(REQUIREMENTS)}, found {text!r}")
    return found


def read_trust(path: str) -> frozenset[str]:
    """The keys of a trust file. Raises UsageError."""
    try:
        return trust_untrusted(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ReceiptError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot use the trust file {path}: {reason}") from error


@dataclass(frozen=True)
class VerifyOptions:
    """Which receipt, what to check beyond itself, and how to print."""

    receipt: Path | None = option(
        None,
        "the receipt file, or - for stdin (default: the last one that a run of this machine left)",
        "RECEIPT",
        name="receipt",
        read=read_path,
        optional=True,
    )
    replay: bool = option(
        False, "recompute the whole run with the model and compare tokens", group=BEYOND, everyday=True
    )
    audit: int = option(
        0,
        "ask the nodes to open N frames of your choosing, and recompute those",
        "N",
        read=Number(int, 1, 4096, "a number of frames"),
        group=BEYOND,
        everyday=True,
    )
    trust: frozenset[str] | None = option(
        None, "refuse keys that are not in FILE, one in hex a line", "FILE", read=read_trust, group=BEYOND
    )
    require_level: int = option(
        1,
        "exit with 3 below this level (default: %(default)s); a level is the highest thing that was shown, so 4 "
        "says nothing of a witness: see --require",
        "L",
        read=Number(int, 0, 4, "a level"),
        group=BEYOND,
        everyday=True,
    )
    require: frozenset[Requirement] = option(
        frozenset(),
        "of witness, audit, replay, exact, by commas: exit with 3 unless each of them was shown; exact: all that "
        "was recomputed is equal to the last bit",
        "LIST",
        read=requirements,
        group=BEYOND,
        everyday=True,
    )
    model: str | None = option(
        None, "your copy of the model (default: the one that comes along)", "REF", group=BEYOND, everyday=True
    )
    beside: tuple[Path, ...] = option(
        (),
        "another receipt, or a folder of them: refuse a key whose counters go back between them (repeatable)",
        "PATH",
        read=read_path,
        repeat=True,
        group=BEYOND,
    )
    log: Path | None = option(
        None,
        "refuse a receipt that is not in this transparency log: a copy of its folder, or a .tlog-proof file",
        "PATH",
        read=read_path,
        group=BEYOND,
    )
    log_proof: Path | None = option(
        None, "keep the proof found in the folder of --log as a file", "FILE", read=file_to_write, group=BEYOND
    )
    secrets: Path | None = option(
        None,
        "the requester's values behind salted digests (default: RECEIPT with .secrets.json, where it exists)",
        "FILE",
        read=read_path,
        group=BEYOND,
    )
    address: tuple[str, ...] = option(
        (),
        "where to reach a node for --audit (default: as its swarm knows); NODE may be cut to 8 digits",
        "NODE=HOST:PORT",
        repeat=True,
        group=BEYOND,
    )
    via: str | None = option(
        None,
        "with --audit: have a third node recompute the opened rows too, with the kernels that the stage signed; it is "
        "named as a witness unless it took part in the run, and sees those rows",
        "NODE[=HOST:PORT]",
        group=BEYOND,
    )
    calibrate: bool = option(
        False,
        "measure how far honest stages of --model err on this machine, and keep the limits for later checks",
        group=BEYOND,
    )
    json: bool = option(False, "print the verdict as JSON", group="output", everyday=True)
    svg: Path | None = option(
        None, "draw the run, with the standing of each claim", "FILE", read=stream_to_write, group="output"
    )


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Check a receipt and say of each claim whether it is proven, co-signed, witnessed, claimed or not checked. "
        "Exit code 0: met; 2: unreadable or misuse; 3: authentic but below the required level; 4: replay or audit was "
        "not conclusive; 10 and above: refused, one code for each reason (docs/receipts.md)."
    )
    parser.declare(VerifyOptions)
    add_member_options(parser)
    parser.set_defaults(run=run)


def read_receipt(path: Path) -> bytes:
    """The bytes of a receipt, from stdin for `-`. Raises UsageError (exit code 2) when there are none."""
    if path == STDIN:
        data = sys.stdin.buffer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"expected a receipt of at most {MOST_BYTES} bytes on stdin, found more")
        return data
    return files.read_file(path)


def verify_file(path: Path, show: Callable[[str], None] = print) -> int:
    """Verify at the levels that need nothing else, and print. Returns the exit code."""
    return _show(verify(read_receipt(path)), show)


def _show(verdict: Verdict, show: Callable[[str], None]) -> int:
    from receipts.check.report import text_report

    width = shutil.get_terminal_size((100, 24)).columns if sys.stderr.isatty() or sys.stdout.isatty() else 100
    show(text_report(verdict, width))
    return verdict.exit_code


def run(arguments: argparse.Namespace) -> int:
    """Check one file, or calibrate."""
    options = build(VerifyOptions, vars(arguments))
    if options.calibrate:
        return _calibrate(options, models_dir(arguments))
    receipt = options.receipt
    if receipt is None:
        receipt = last_receipt(state_dir(arguments) / "receipts")
        say(f"the last receipt here: {receipt}")
    data = read_receipt(receipt)
    held_to = Options(
        required=Level(options.require_level),
        requirements=options.require,
        trust=options.trust,
        secrets=read_secrets(options.secrets, receipt, data),
        beside=read_beside(options.beside),
        log=read_log(options.log, options.log_proof, data),
    )
    if options.via is not None and not options.audit:
        raise UsageError("expected --audit N with --via NODE: it recomputes what was opened")
    if options.replay or options.audit or options.model:
        verdict = _recomputed(options, held_to, data, member_config(arguments))
    else:
        verdict = verify(data, held_to)
    if options.svg is not None:
        from receipts.check.draw import svg_report

        write_drawing(options.svg, svg_report(verdict))
    if not options.json:
        return _show(verdict, print)
    print(json.dumps(verdict.as_json()))
    return verdict.exit_code


def _recomputed(options: VerifyOptions, held_to: Options, data: bytes, member: MemberConfig) -> Verdict:
    from swarm.recheck.check import CheckConfig, check
    from swarm.terminal.progress import reporter

    addresses = read_addresses(options.address, data)
    via = None
    if options.via is not None:
        via, at = read_via(options.via, data)
        addresses = {**addresses, via: [*addresses.get(via, ()), *at]} if at else addresses
    config = CheckConfig(member.models, held_to, options.model, options.replay, options.audit, addresses, member, via)
    with reporter(json_lines=False, out=sys.stderr) as report:
        return run_loop(check(data, config, report))


def read_log(log: Path | None, keep: Path | None, data: bytes) -> LogProof | None:
    """Proof that the receipt is in a log: read from a file, or made from a log's folder and kept in `keep`.

    Raises UsageError for what cannot be read. A folder that lacks the receipt gives a proof that is refused.
    """
    if log is None:
        if keep is not None:
            raise UsageError("expected --log DIR with --log-proof, found no log to make a proof from")
        return None
    from receipts.check.logged import entries_of
    from receipts.format.log_tiles import LogProof, find_proof, proof_untrusted
    from swarm.ring.transparency_log import read_file

    try:
        if not log.is_dir():
            return proof_untrusted(log.read_bytes())
        run = verify(data).run
        if run is None:
            return None  # refused for what it is, whatever the log says
        proof = find_proof(lambda path: read_file(log, path), list(entries_of(run)))
        if keep is not None:
            write_whole(keep, proof.to_bytes(), 0o644)
        return proof
    except OSError as error:
        raise UsageError(f"cannot read the log {log}: {error.strerror}") from error
    except ReceiptError as error:
        return LogProof(0, (), b"", str(error.claim))


def read_beside(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """The receipts of these files and folders. Raises UsageError."""
    found = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        found += [read_receipt(file) for file in inside if not file.name.endswith(BESIDE)]
    return tuple(found)


def read_secrets(given: Path | None, receipt: Path, data: bytes) -> tuple[Secret, ...]:
    """The file given, or of the one beside the receipt what belongs to it. Raises UsageError."""
    if given is not None:
        return files.read_secrets(given)
    return files.secrets_beside(receipt, data) if receipt != STDIN else ()


def read_addresses(given: Sequence[str], data: bytes) -> dict[str, list[Address]]:
    """--address NODE=HOST:PORT for nodes of this receipt. Raises UsageError."""
    from swarm.base.config import parse_dialled

    run = verify(data).run
    nodes = run.nodes() if run is not None else ()
    found: dict[str, list[Address]] = {}
    for text in given:
        name, equals, address = text.partition("=")
        fitting = [node for node in nodes if len(name) >= 8 and node.startswith(name.lower())]
        if not equals or len(fitting) != 1:
            known = ", ".join(node[:8] for node in nodes) or "none"
            raise UsageError(f"expected --address NODE=HOST:PORT with a node of the receipt ({known}), found {text!r}")
        found.setdefault(fitting[0], []).append(parse_dialled(address))
    return found


def read_via(given: str, data: bytes) -> tuple[str, list[Address]]:
    """The node (hex) of --via, and where it is said to be. Raises UsageError."""
    from swarm.base.config import parse_dialled

    name, equals, address = given.partition("=")
    name = name.lower()
    run = verify(data).run
    known = [node for node in (run.nodes() if run is not None else ()) if len(name) >= 8 and node.startswith(name)]
    whole = len(name) == 64 and all(digit in "0123456789abcdef" for digit in name)
    if not whole and len(known) != 1:
        raise UsageError(
            f"expected --via NODE with all 64 digits of a node, or 8 and more of one of the receipt, found {given!r}; "
            "swarm status --json tells them"
        )
    return name if whole else known[0], [parse_dialled(address)] if equals else []


def write_drawing(path: Path, text: str) -> None:
    """A drawing goes into a file, whole or not at all, or to a device. Raises UsageError where it cannot."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            write_whole(path, text.encode(), 0o644)
    except OSError as error:
        raise UsageError(f"cannot write the drawing {path}: {error.strerror}") from error


def _calibrate(options: VerifyOptions, models: Path) -> int:
    """Measure and keep the limits of a model."""
    if options.receipt is not None:
        raise UsageError("expected --calibrate without a receipt: limits are of a model; name it with --model REF")
    from swarm.model.files.checkpoint import load_tokenizer, open_model
    from swarm.model.files.store import ModelStore
    from swarm.recheck.calibrate import TEXTS, measure_limits
    from swarm.recheck.limits import save_limits
    from swarm.terminal.progress import reporter

    ref = options.model or DEFAULT_MODEL
    with reporter(json_lines=False, out=sys.stderr) as report:
        store = ModelStore(models)
        checkpoint = open_model(ref, store, None, report)
        tokenizer = load_tokenizer(ref, store, report)
        limits, measured = measure_limits(checkpoint, [tokenizer(text)["input_ids"] for text in TEXTS], report=report)
    path = save_limits(models, limits)
    if options.json:
        print(path.read_text("utf-8"), end="")
        return 0
    for item in measured:
        gate = item.limit
        print(
            f"{item.name:20} honest median {item.honest_median:.6f}  gates {gate.median_ppm / 1e6:.6f} median, "
            f"{gate.row_ppm / 1e6:.6f} row, {gate.tie_ppm / 1e6:.4f} tie  ({gate.samples} rows)"
        )
    say(f"kept in {path}")
    return 0
