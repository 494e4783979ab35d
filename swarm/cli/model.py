"""`swarm model`: the models on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from swarm.base.config import MemberConfig, parse_layers
from swarm.base.option import build, like, option, or_none
from swarm.base.paths import folder_to_write
from swarm.cli.common import models_dir
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class ListOptions:
    """How to print."""

    json: bool = option(False, "print JSON")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how to print."""

    ref: str = option("", "name, folder, .gguf file or hub id (org/name, org/name:Q4_K_M)", "REF", name="ref")
    json: bool = like(ListOptions, "json")


@dataclass(frozen=True)
class PullOptions(ModelOptions):
    """Of which layers."""

    layers: tuple[int, int] | None = option(None, "only what these layers need", "A:B", read=or_none(parse_layers))


@dataclass(frozen=True)
class QuantizeOptions(ModelOptions):
    """Into what, and where."""

    to: str = option(
        "",
        "q4_k: about 4.6 bits a weight; q8_0: 8.5; int8 and fp8: 8, in the format of compressed-tensors",
        choices=("q4_k", "q8_0", "int8", "fp8"),
        required=True,
    )
    out: Path = option(Path(), "folder to make", "DIR", read=folder_to_write, required=True)
    no_report: bool = option(False, "do not compare the two models")


_SHOW = (
    "Layers, sizes and content digest of a model; what its weights take on this machine's CPU, and whether its rows "
    "are computed there with the same bits in any company."
)


def add(parser: Parser) -> None:
    """The options of the commands."""
    parser.description = "The models on this machine."
    what = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, help: str, description: str, kind: type, run: Callable[[argparse.Namespace], int]) -> None:
        one = what.add_parser(name, help=help, description=description)
        one.declare(kind)
        one.declare(MemberConfig, "state", "models")
        one.set_defaults(run=run)

    action("pull", "make a model present", "Fetch a model, or some of its layers.", PullOptions, run_pull)
    action("list", "what is here", "The models that were pulled.", ListOptions, run_list)
    action("show", "a model's numbers", _SHOW, ModelOptions, run_show)
    action(
        "quantize",
        "make a smaller model",
        "Round a model's matrices, layer by layer, into a new folder with a digest of its own, and tell how far it is "
        "from the one it was made of: both read one text that comes with wanswarm.",
        QuantizeOptions,
        run_quantize,
    )


def run_pull(arguments: argparse.Namespace) -> int:
    """Fetch, with progress; prints where it lies."""
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter

    options = build(PullOptions, vars(arguments))
    with reporter(json_lines=options.json, out=sys.stderr) as report:
        path = ModelStore(models_dir(arguments)).pull(options.ref, options.layers, report)
    print(json.dumps({"ref": options.ref, "path": str(path)}) if options.json else path)
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

    options, store = build(QuantizeOptions, vars(arguments)), ModelStore(models_dir(arguments))
    with reporter(json_lines=options.json, out=sys.stderr) as report:
        made = quantize(store, options.ref, options.to, options.out, not options.no_report, report)
    if options.json:
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
    """A model's numbers, and how this machine would hold and compute it."""
    from swarm.discovery.held_here import held_here, rows_here
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter

    store = ModelStore(models_dir(arguments))
    with reporter(json_lines=arguments.json, out=sys.stderr) as report:
        manifest = store.manifest(arguments.ref, report)
        summary = store.show(arguments.ref, manifest=manifest)
    held = held_here(manifest)
    if arguments.json:
        here = {**asdict(held), "rows": rows_here(store, arguments.ref, manifest)}
        print(json.dumps({**asdict(summary), "path": str(summary.path), "here": here}))
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
        ("held here", held.told),
        ("a layer here", held.layers_told),
    ):
        print(f"{name:13} {value}")
    print(f"{'rows here':13} {rows_here(store, arguments.ref, manifest)}")  # takes loading a part of it
    return 0
