"""`swarm verify`: what a receipt proves."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from receipts.check.draw import svg_report
from receipts.check.report import text_report
from receipts.check.verdict import REQUIREMENTS, Level, Requirement, Verdict
from receipts.check.verify import trust_untrusted, verify
from receipts.format.errors import ReceiptError
from receipts.format.salt import Secret
from swarm.base.errors import UsageError
from swarm.cli.common import add_member_options, member_config, models_dir, number, say, state_dir
from swarm.cli.loop import run_loop
from swarm.recheck import files

if TYPE_CHECKING:
    from receipts.format.log_tiles import LogProof
    from swarm.base.address import Address
    from swarm.recheck.check import CheckConfig


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "verify",
        help="what a receipt proves",
        description="Check a receipt and say of each claim whether it is proven, co-signed, witnessed, claimed or not "
        "checked. Exit code 0: met; 2: unreadable or misuse; 3: authentic but below the required level; 4: replay or "
        "audit was not conclusive; 10 and above: refused, one code for each reason (docs/receipts.md).",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "receipt",
        type=Path,
        nargs="?",
        metavar="RECEIPT",
        help="the receipt file, or - for stdin (default: the last one that a run of this machine left)",
    )
    more = parser.add_argument_group("what to check beyond the receipt itself")
    more.add_argument("--replay", action="store_true", help="recompute the whole run with the model and compare tokens")
    more.add_argument(
        "--audit",
        type=number(int, 1, 4096, "a number of frames"),
        default=0,
        metavar="N",
        help="ask the nodes to open N frames of your choosing, and recompute those",
    )
    more.add_argument("--trust", type=Path, metavar="FILE", help="refuse keys that are not in FILE, one in hex a line")
    more.add_argument(
        "--require-level",
        type=number(int, 0, 4, "a level from 0 to 4"),
        default=1,
        metavar="L",
        help="exit with 3 below this level (default: %(default)s); a level is the highest thing that was shown, so 4 "
        "says nothing of a witness: see --require",
    )
    more.add_argument(
        "--require",
        type=_requirements,
        default=frozenset(),
        metavar="LIST",
        help="of witness, audit, replay, exact, by commas: exit with 3 unless each of them was shown; exact: all that "
        "was recomputed is equal to the last bit",
    )
    more.add_argument("--model", metavar="REF", help="your copy of the model (default: the one that comes along)")
    more.add_argument(
        "--beside",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="another receipt, or a folder of them: refuse a key whose counters go back between them (repeatable)",
    )
    more.add_argument(
        "--log",
        type=Path,
        metavar="PATH",
        help="refuse a receipt that is not in this transparency log: a copy of its folder, or a .tlog-proof file",
    )
    more.add_argument(
        "--log-proof", type=Path, metavar="FILE", help="keep the proof found in the folder of --log as a file"
    )
    more.add_argument(
        "--secrets",
        type=Path,
        metavar="FILE",
        help="the requester's values behind salted digests (default: RECEIPT with .secrets.json, where it exists)",
    )
    more.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="NODE=HOST:PORT",
        help="where to reach a node for --audit (default: as its swarm knows); NODE may be cut to 8 digits",
    )
    more.add_argument(
        "--calibrate",
        action="store_true",
        help="measure how far honest stages of --model err on this machine, and keep the limits for later checks",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the verdict as JSON")
    output.add_argument("--svg", type=Path, metavar="FILE", help="draw the run, with the standing of each claim")
    add_member_options(parser)


def _requirements(text: str) -> frozenset[Requirement]:
    """witness,audit,replay,exact: some of them."""
    words = [word.strip() for word in text.split(",")]
    found = frozenset(known for known in REQUIREMENTS if known in words)
    if len(found) != len(words):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(REQUIREMENTS)}, found {text!r}")
    return found


STDIN = Path("-")
MOST_BYTES = 256_000_000
"""Larger than any receipt; a pipe that brings more brings something else."""


def last_receipt(folder: Path) -> Path:
    """The receipt that was written last in a state folder's `receipts`. Raises UsageError when there is none."""
    found = [path for path in folder.glob("*.json") if not path.name.endswith(files.SECRETS)]
    if not found:
        raise UsageError(f"expected a receipt, found none in {folder}; write swarm verify RECEIPT")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


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
    width = shutil.get_terminal_size((100, 24)).columns if sys.stderr.isatty() or sys.stdout.isatty() else 100
    show(text_report(verdict, width))
    return verdict.exit_code


def run(arguments: argparse.Namespace) -> int:
    """Check one file, or calibrate."""
    if arguments.calibrate:
        return _calibrate(arguments)
    if arguments.receipt is None:
        arguments.receipt = last_receipt(state_dir(arguments) / "receipts")
        say(f"the last receipt here: {arguments.receipt}")
    data = read_receipt(arguments.receipt)
    verdict = _verdict(arguments, data)
    if arguments.svg is not None:
        write_drawing(arguments.svg, svg_report(verdict))
    if not arguments.json:
        return _show(verdict, print)
    print(json.dumps(verdict.as_json()))
    return verdict.exit_code


def _verdict(arguments: argparse.Namespace, data: bytes) -> Verdict:
    if not (arguments.replay or arguments.audit or arguments.model):
        from receipts.check.verify import Options

        options = Options(
            required=Level(arguments.require_level),
            requirements=arguments.require,
            trust=read_trust(arguments.trust),
            secrets=read_secrets(arguments, data),
            beside=read_beside(arguments.beside),
            log=read_log(arguments.log, arguments.log_proof, data),
        )
        return verify(data, options)
    from swarm.recheck.check import check
    from swarm.terminal.progress import reporter

    config = _config(arguments, data)
    with reporter(json_lines=False, out=sys.stderr) as report:
        return run_loop(check(data, config, report))


def _config(arguments: argparse.Namespace, data: bytes) -> CheckConfig:
    from swarm.recheck.check import CheckConfig

    return CheckConfig(
        models=models_dir(arguments),
        required=Level(arguments.require_level),
        requirements=arguments.require,
        trust=read_trust(arguments.trust),
        secrets=read_secrets(arguments, data),
        beside=read_beside(arguments.beside),
        model=arguments.model,
        replay=arguments.replay,
        audit=arguments.audit,
        addresses=read_addresses(arguments.address, data),
        member=member_config(arguments),
        log=read_log(arguments.log, arguments.log_proof, data),
    )


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
            keep.write_bytes(proof.to_bytes())
        return proof
    except OSError as error:
        raise UsageError(f"cannot read the log {log}: {error.strerror}") from error
    except ReceiptError as error:
        return LogProof(0, (), b"", str(error.claim))


def read_trust(path: Path | None) -> frozenset[str] | None:
    """The keys of a trust file. Raises UsageError."""
    if path is None:
        return None
    try:
        return trust_untrusted(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ReceiptError) as error:
        raise UsageError(f"cannot use the trust file {path}: {error}") from error


def read_beside(paths: list[Path]) -> tuple[bytes, ...]:
    """The receipts of these files and folders. Raises UsageError."""
    found = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        found += [read_receipt(file) for file in inside if not file.name.endswith(files.SECRETS)]
    return tuple(found)


def read_secrets(arguments: argparse.Namespace, data: bytes) -> tuple[Secret, ...]:
    """The file given, or of the one beside the receipt what belongs to it. Raises UsageError."""
    if arguments.secrets is not None:
        return files.read_secrets(arguments.secrets)
    return files.secrets_beside(arguments.receipt, data) if arguments.receipt != STDIN else ()


def read_addresses(given: list[str], data: bytes) -> dict[str, list[Address]]:
    """--address NODE=HOST:PORT for nodes of this receipt. Raises UsageError."""
    from swarm.base.config import parse_address

    run = verify(data).run
    nodes = run.nodes() if run is not None else ()
    found: dict[str, list[Address]] = {}
    for text in given:
        name, equals, address = text.partition("=")
        fitting = [node for node in nodes if len(name) >= 8 and node.startswith(name.lower())]
        if not equals or len(fitting) != 1:
            known = ", ".join(node[:8] for node in nodes) or "none"
            raise UsageError(f"expected --address NODE=HOST:PORT with a node of the receipt ({known}), found {text!r}")
        found.setdefault(fitting[0], []).append(parse_address(address))
    return found


def write_drawing(path: Path, text: str) -> None:
    """A drawing goes into a file. Raises UsageError where it cannot."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the drawing {path}: {error.strerror}") from error


def _calibrate(arguments: argparse.Namespace) -> int:
    """Measure and keep the limits of a model."""
    from swarm.model.files.checkpoint import load_tokenizer, open_model
    from swarm.model.files.named import DEFAULT_MODEL
    from swarm.model.files.store import ModelStore
    from swarm.recheck.calibrate import TEXTS, measure_limits
    from swarm.recheck.limits import save_limits
    from swarm.terminal.progress import reporter

    if arguments.receipt is not None:
        raise UsageError("expected --calibrate without a receipt: limits are of a model; name it with --model REF")
    models, ref = models_dir(arguments), arguments.model or DEFAULT_MODEL
    with reporter(json_lines=False, out=sys.stderr) as report:
        store = ModelStore(models)
        checkpoint = open_model(ref, store, None, report)
        tokenizer = load_tokenizer(ref, store, report)
        limits, measured = measure_limits(checkpoint, [tokenizer(text)["input_ids"] for text in TEXTS], report=report)
    path = save_limits(models, limits)
    if arguments.json:
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
