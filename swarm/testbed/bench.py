"""`swarm bench speculation`: how much faster drafting makes a ring, per kind of text, distance, mode and drafter.

A cell is one (round trip, class of prompts, mode, drafter). Every prompt runs in every cell of its distance, one after
the other, so that a drifting machine drifts for all of them; a cell's speed-up is the median over prompts of its tokens
per second over those of the plain run of the same prompt. All runs are greedy, so all must give the same tokens: a run
that differs from its plain one is counted and named.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from swarm.base.errors import UsageError
from swarm.base.events import Notice, Report, silent
from swarm.base.option import Number, option

CLASSES = ("prose", "chat", "code", "copy")
MODES = ("plain", "chain", "tree", "stream")
DRAFTS = ("none", "suffix", "lm", "auto")


@dataclass(frozen=True)
class BenchPlan:
    """What to measure. `prompts`: how many of each class. `rtts_ms`: of every edge. `max_tokens`: exact, per run."""

    rtts_ms: tuple[float, ...] = option(
        (20.0, 50.0, 100.0),
        "round trips of every edge (default: 20 50 100)",
        "MS",
        name="--rtt",
        read=Number(float, 0, 10_000, "milliseconds"),
        many=True,
    )
    classes: tuple[str, ...] = option(CLASSES, f"{', '.join(CLASSES)} (default: all)", "CLASS", many=True)
    modes: tuple[str, ...] = option(MODES, f"{', '.join(MODES)} (default: all)", "MODE", many=True)
    drafts: tuple[str, ...] = option(DRAFTS[1:], f"{', '.join(DRAFTS[1:])} (default: all)", "DRAFTER", many=True)
    prompts: int = option(
        8, "prompts of each class (default: %(default)s)", "N", read=Number(int, 1, 8, "a number of prompts")
    )
    max_tokens: int = option(
        128, "length of every answer (default: %(default)s)", "N", read=Number(int, 8, 100_000, "a number of tokens")
    )

    def __post_init__(self) -> None:
        for name, chosen, known in (
            ("class", self.classes, CLASSES),
            ("mode", self.modes, MODES),
            ("drafter", self.drafts, DRAFTS),
        ):
            unknown = [one for one in chosen if one not in known]
            if unknown:
                raise UsageError(f"expected a {name} of {', '.join(known)}, found {unknown[0]!r}")
        if not 1 <= self.prompts <= 8:
            raise UsageError(f"expected 1 to 8 prompts per class, found {self.prompts}")

    def settings(self) -> list[tuple[str, str]]:
        """(mode, drafter) in the order in which they run; plain comes first, since the others are held against it."""
        others = [(mode, draft) for mode in self.modes if mode != "plain" for draft in self.drafts if draft != "none"]
        return [("plain", "none"), *others]


@dataclass(frozen=True)
class BenchRun:
    """One generation. `result` is what `swarm generate --json` prints, without text and prompt (`kept`)."""

    rtt_ms: float
    kind: str
    prompt: int
    speculation: str
    draft: str
    result: Mapping[str, Any]

    @property
    def key(self) -> tuple[float, str, int, str, str]:
        return (self.rtt_ms, self.kind, self.prompt, self.speculation, self.draft)

    @property
    def tokens_per_second(self) -> float:
        """After the first token: what the prompt cost is not what is compared here."""
        seconds = self.result["seconds"] - self.result["ttft_seconds"]
        return float((self.result["new_tokens"] - 1) / seconds) if seconds > 0 else 0.0


@dataclass(frozen=True)
class Cell:
    """Medians over the prompts of one class in one setting at one distance.

    `over_plain`: speed-up. `busy`: share of the time that the busiest stage computed. Bytes are those of all links.
    `different`: runs whose tokens were not those of the plain run. `by_depth`: share of the drafted rows that were
    accepted, by how far below the last known token they were when sent (one below comes first), over all runs.
    """

    rtt_ms: float
    kind: str
    speculation: str
    draft: str
    runs: int
    tokens_per_second: float
    over_plain: float
    tokens_per_pass: float
    acceptance: float
    rows_per_token: float
    bytes_per_token: float
    pass_ms: float
    busy: float
    different: int
    by_depth: list[float] = field(default_factory=list)


class Asker(Protocol):
    """Runs one prompt on a ring that stands, and returns the object of `swarm generate --json`."""

    async def __call__(self, prompt: str, speculation: str, draft: str, max_tokens: int) -> Mapping[str, Any]: ...


OpenRing = Callable[[float], AbstractAsyncContextManager[Asker]]
"""Makes a ring whose every edge has this round trip in milliseconds."""


def load_prompts() -> dict[str, list[str]]:
    """The prompts that are shipped, by class."""
    text = resources.files("swarm").joinpath("data/bench_prompts.json").read_text(encoding="utf-8")
    classes: dict[str, list[str]] = json.loads(text)["classes"]
    return classes


async def measure(plan: BenchPlan, open_ring: OpenRing, folder: Path, report: Report = silent) -> dict[str, Any]:
    """Run everything that `folder` does not hold yet, write `runs.jsonl` on the way and `summary.json` at the end.

    Returns the summary. Stopped half-way, it goes on from there when called again with the same folder.
    """
    log = folder / "runs.jsonl"
    runs = read_runs(log)
    done = {run.key for run in runs}
    prompts = load_prompts()
    for rtt_ms in plan.rtts_ms:
        wanted = [
            (rtt_ms, kind, prompt, mode, draft)
            for prompt in range(plan.prompts)
            for kind in plan.classes
            for mode, draft in plan.settings()
            if (rtt_ms, kind, prompt, mode, draft) not in done
        ]
        if not wanted:
            continue
        async with open_ring(rtt_ms) as ask:
            await ask(prompts["chat"][0], "plain", "none", 8)  # connections and caches are warm for all alike
            for number, (_, kind, prompt, mode, draft) in enumerate(wanted, 1):
                told = await ask(prompts[kind][prompt], mode, draft, plan.max_tokens)
                result = await asyncio.to_thread(kept, told)
                run = BenchRun(rtt_ms, kind, prompt, mode, draft, result)
                runs.append(run)
                await asyncio.to_thread(append_run, log, run)
                report(Notice(f"RTT {rtt_ms:g} ms  {number}/{len(wanted)}  {describe(run)}"))
    summary = {
        "machine": machine(),
        "plan": asdict(plan),
        "cells": [asdict(cell) for cell in summarise(run for run in runs if run.rtt_ms in plan.rtts_ms)],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a result: not the text, not the prompt, but its length."""
    left = {name: value for name, value in result.items() if name not in ("text", "prompt_token_ids", "receipt")}
    measured = read_receipt(Path(result["receipt"])) if result.get("receipt") else {}
    return left | {"prompt_tokens": len(result["prompt_token_ids"])} | measured


def read_receipt(path: Path) -> dict[str, int]:
    """What stages and links measured: bytes over all links, and the compute of the busiest stage in microseconds."""
    said = [item for item in json.loads(path.read_bytes())["readable"] if "predicate" in item]

    def of_kind(kind: str) -> list[dict[str, Any]]:
        return [item["predicate"] for item in said if f":{kind}:" in item.get("predicateType", "")]

    links = {(one["epoch"], one["index"]): one["bytes"] for one in of_kind("edge")}  # both ends say the same
    return {"bytes": sum(links.values()), "busiest_us": max((one["compute_us"] for one in of_kind("end")), default=0)}


def describe(run: BenchRun) -> str:
    """One line about one run."""
    per_pass = run.result["tokens_per_pass"]
    setting = f"{run.speculation} {run.draft}"
    return f"{run.kind} {run.prompt + 1} {setting:<13} {run.tokens_per_second:6.1f} tok/s  {per_pass:.2f} per pass"


def append_run(log: Path, run: BenchRun) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        cut_off = file.read() not in (b"", b"\n")  # an earlier call was killed while writing
        file.write(("\n" if cut_off else "").encode() + json.dumps(asdict(run)).encode() + b"\n")


def read_runs(log: Path) -> list[BenchRun]:
    """The runs of an earlier call; a last line that was cut off is ignored."""
    if not log.exists():
        return []
    runs = []
    for line in log.read_text().splitlines():
        try:
            runs.append(BenchRun(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return runs


def summarise(runs: Iterable[BenchRun]) -> list[Cell]:
    """Cells in a stable order; prompts without a plain run at their distance count for speed but not for speed-up."""
    by_key = {run.key: run for run in runs}
    groups: dict[tuple[float, str, str, str], list[BenchRun]] = {}
    for run in by_key.values():
        groups.setdefault((run.rtt_ms, run.kind, run.speculation, run.draft), []).append(run)
    order = {name: place for place, name in enumerate([*CLASSES, *MODES, *DRAFTS])}
    keys = sorted(groups, key=lambda key: (key[0], *(order.get(word, 99) for word in key[1:])))
    return [_cell(groups[key], by_key) for key in keys]


def _cell(runs: Sequence[BenchRun], by_key: Mapping[tuple[float, str, int, str, str], BenchRun]) -> Cell:
    first = runs[0]
    pairs = [(run, by_key.get((run.rtt_ms, run.kind, run.prompt, "plain", "none"))) for run in runs]
    known = [(run, plain) for run, plain in pairs if plain is not None and plain.tokens_per_second > 0]

    def median(values: Iterable[float]) -> float:
        found = list(values)
        return round(statistics.median(found), 4) if found else 0.0

    return Cell(
        first.rtt_ms,
        first.kind,
        first.speculation,
        first.draft,
        runs=len(runs),
        tokens_per_second=median(run.tokens_per_second for run in runs),
        over_plain=median(run.tokens_per_second / plain.tokens_per_second for run, plain in known),
        tokens_per_pass=median(run.result["tokens_per_pass"] for run in runs),
        acceptance=median(run.result["acceptance"] for run in runs),
        rows_per_token=median(_rows(run) / run.result["new_tokens"] for run in runs),
        bytes_per_token=median(_bytes(run) / run.result["new_tokens"] for run in runs),
        pass_ms=median(run.result.get("pass_ms", 0.0) for run in runs),
        busy=median(_busy(run) for run in runs),
        different=sum(run.result["token_ids"] != plain.result["token_ids"] for run, plain in known),
        by_depth=_by_depth(runs),
    )


def _by_depth(runs: Sequence[BenchRun]) -> list[float]:
    sums = [
        [sum(level) for level in zip_longest(*(run.result.get(name, ()) for run in runs), fillvalue=0)]
        for name in ("depth_sent", "depth_accepted")
    ]
    return [round(right / sent, 4) if sent else 0.0 for sent, right in zip(*sums, strict=True)]


def _rows(run: BenchRun) -> int:
    """Rows sent for the answer, those of the prompt left out."""
    result = run.result
    return int(result["rows_sent"] - result["prompt_tokens"] + result.get("cached_prompt_tokens", 0))


def _busy(run: BenchRun) -> float:
    return float(run.result.get("busiest_us", 0) * 1e-6 / max(run.result["seconds"], 1e-9))


def _bytes(run: BenchRun) -> float:
    """Bytes over all links for the answer: the prompt's rows are as large as the others."""
    result = run.result
    return float(result.get("bytes", 0) * _rows(run) / max(1, result["rows_sent"]))


def table(summary: Mapping[str, Any]) -> str:
    """The cells as a Markdown table."""
    names = "RTT ms,class,mode,drafter,tok/s,x plain,tok/pass,accepted,rows/tok,kB/tok,pass ms,busy".split(",")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for cell in summary["cells"]:
        lines.append(
            f"| {cell['rtt_ms']:g} | {cell['kind']} | {cell['speculation']} | {cell['draft']} "
            f"| {cell['tokens_per_second']:.1f} | {cell['over_plain']:.2f} | {cell['tokens_per_pass']:.2f} "
            f"| {cell['acceptance']:.2f} | {cell['rows_per_token']:.1f} | {cell['bytes_per_token'] / 1e3:.1f} "
            f"| {cell['pass_ms']:.0f} | {cell['busy']:.2f} |"
        )
    different = sum(cell["different"] for cell in summary["cells"])
    return "\n".join([*lines, "", f"{different} runs differ in a token from the plain run of the same prompt"])


def machine() -> dict[str, Any]:
    """What the numbers were measured on; nothing that names the owner."""
    import psutil
    import torch

    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
