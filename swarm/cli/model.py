"""`swarm model`: the models on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from swarm.base.config import parse_layers
from swarm.cli.common import add_folders, models_dir


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parsers of the command."""
    parser = commands.add_parser(
        "model", help="pull, list, show or quantize models", description="The models on this machine."
    )
    what = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    pull = what.add_parser("pull", help="make a model present", description="Fetch a model, or some of its layers.")
    pull.add_argument("ref", metavar="REF", help="name, folder, .gguf file or hub id (org/name, org/name:Q4_K_M)")
    pull.add_argument("--layers", metavar="A:B", help="only what these layers need")
    pull.set_defaults(run=run_pull)
    listing = what.add_parser("list", help="what is here", description="The models that were pulled.")
    listing.set_defaults(run=run_list)
    show = what.add_parser("show", help="a model's numbers", description="Layers, sizes and content digest of a model.")
    show.add_argument("ref", metavar="REF", help="name, folder, .gguf file or hub id (org/name, org/name:Q4_K_M)")
    show.set_defaults(run=run_show)
    smaller = what.add_parser(
        "quantize",
        help="make a smaller model",
        description="Round a model's matrices, layer by layer, into a new folder with a digest of its own, and tell "
        "how far it is from the one it was made of: both read one text that comes with wanswarm.",
    )
    smaller.add_argument("ref", metavar="REF", help="name, folder, .gguf file or hub id (org/name, org/name:Q4_K_M)")
    smaller.add_argument(
        "--to", required=True, choices=("q4_k", "q8_0", "int8", "fp8"),
        help="q4_k: about 4.6 bits a weight; q8_0: 8.5; int8 and fp8: 8, in the format of compressed-tensors",
    )  # fmt: skip
    smaller.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    smaller.add_argument("--no-report", action="store_true", help="do not compare the two models")
    smaller.set_defaults(run=run_quantize)
    for each in (pull, listing, show, smaller):
        each.add_argument("--json", action="store_true", help="print JSON")
        add_folders(each)


def run_pull(arguments: argparse.Namespace) -> int:
    """Fetch, with progress; prints where it lies."""
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter

    layers = parse_layers(arguments.layers) if arguments.layers else None
    with reporter(json_lines=arguments.json, out=sys.stderr) as report:
        path = ModelStore(models_dir(arguments)).pull(arguments.ref, layers, report)
    print(json.dumps({"ref": arguments.ref, "path": str(path)}) if arguments.json else path)
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """One line a model."""
    from swarm.model.files.store import ModelStore

    models = ModelStore(models_dir(arguments)).list()
    if arguments.json:
        print(json.dumps([{**asdict(m), "path": str(m.path)} for m in models]))
        return 0
    if not models:
        print("no models here yet; fetch one: swarm model pull smollm2-135m-instruct", file=sys.stderr)
    for m in models:
        part = "" if m.here_bytes == m.total_bytes else f" of {m.total_bytes / 1e6:.0f}"
        print(f"{m.ref}  {m.here_bytes / 1e6:.0f}{part} MB  {m.path}")
    return 0


def run_quantize(arguments: argparse.Namespace) -> int:
    """Round, write, compare."""
    from swarm.model.files.store import ModelStore
    from swarm.model.quality import quantize
    from swarm.terminal.progress import reporter

    store = ModelStore(models_dir(arguments))
    with reporter(json_lines=arguments.json, out=sys.stderr) as report:
        made = quantize(store, arguments.ref, arguments.to, Path(arguments.out), not arguments.no_report, report)
    if arguments.json:
        print(json.dumps({**asdict(made), "path": str(made.path)}))
        return 0
    for name, value in (
        ("model", made.path),
        ("digest", made.digest),
        ("weights", f"{made.bytes_after / 1e6:.0f} MB, before {made.bytes_before / 1e6:.0f} MB"),
    ):
        print(f"{name:13} {value}")
    if (quality := made.quality) is not None:
        print(f"{'perplexity':13} {quality.perplexity_after:.2f}, before {quality.perplexity_before:.2f}")
        print(f"{'same token':13} {quality.same:.1%} of {quality.tokens - 1}, divergence {quality.divergence:.4f} nats")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """A model's numbers."""
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter

    with reporter(json_lines=arguments.json, out=sys.stderr) as report:
        summary = ModelStore(models_dir(arguments)).show(arguments.ref, report)
    if arguments.json:
        print(json.dumps({**asdict(summary), "path": str(summary.path)}))
        return 0
    layer_mb = max(summary.layer_bytes, default=0) / 1e6
    for name, value in (
        ("model", summary.ref),
        ("digest", summary.digest),
        ("architecture", summary.architecture),
        ("layers", f"{summary.n_layers} of {layer_mb:.1f} MB"),
        ("hidden size", summary.hidden_size),
        ("vocabulary", summary.vocab_size),
        ("context", f"{summary.context} tokens"),
        ("stored", f"{summary.total_bytes / 1e6:.0f} MB as {', '.join(summary.formats)}"),
        ("expanded", f"{summary.expanded_bytes / 1e6:.0f} MB as bfloat16"),
        ("path", summary.path),
    ):
        print(f"{name:13} {value}")
    return 0
