"""The figures of a soak, line by line in a file that outlives its process, and what they sum up to.

A soak that was cut off goes on as another part, with processes of its own: runs and seconds add up, growth is a part's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.churn import Churn, Tally
from tests.soak.footprint import Footprint, slope

MB = 1e6
SETTLED = 0.5
"""The rise is measured over the part of the time after this share: caches, pools and arenas fill up before."""
DAY_S = 86_400.0


class Ledger:
    """Appends to `path`, a line of JSON each; what a crash tore off the end is left out when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, kind: str, **what: Any) -> None:
        """One more line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, **what}) + "\n")

    def look(self, spent: float, churn: Churn, load: float) -> None:
        """How far the present part came."""
        sizes = {name: asdict(size) for name, size in churn.sizes[-1][1].items()} if churn.sizes else {}
        counts = {"events": dict(churn.events), "ring": _told(churn.ring), "http": _told(churn.http)}
        self.note("look", s=round(spent, 1), load=load, sizes=sizes, disk=churn.disk, told=len(churn.told), **counts)

    def parts(self) -> list[Part]:
        """What is there. A file that is not there has none."""
        found: list[Part] = []
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                told = json.loads(line)
            except ValueError:
                continue
            match told["kind"]:
                case "begin":
                    found.append(Part(told))
                case "look" if found:
                    found[-1].looks.append(told)
                case "fault" if found:
                    found[-1].faults.append(str(told["text"]))
                case "end" if found:
                    found[-1].why = str(told["why"])
        return found


@dataclass
class Part:
    """From one start of the soak to its end, or to where it was cut off."""

    begun: Mapping[str, Any]
    looks: list[Mapping[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    why: str = "cut off"

    @property
    def seconds(self) -> float:
        """As far as it is known to have come."""
        return float(self.looks[-1]["s"]) if self.looks else 0.0

    def sizes(self, name: str) -> list[tuple[float, Footprint]]:
        """Of one process: (second, what it held)."""
        return [(float(look["s"]), Footprint(**look["sizes"][name])) for look in self.looks if name in look["sizes"]]


def _told(tally: Tally) -> dict[str, Any]:
    """As plain data; `asdict` would count the pairs of a Counter."""
    return {**vars(tally), "refused": dict(tally.refused)}


def summed(parts: Iterable[Part], asker: str) -> Tally:
    """What became of all runs of "ring" or "http"."""
    total = Tally()
    for told in (part.looks[-1][asker] for part in parts if part.looks):
        for name, value in told.items():
            if name == "refused":
                total.refused.update(value)
            else:
                setattr(total, name, getattr(total, name) + value)
    return total


def seconds(parts: Iterable[Part]) -> float:
    """That were run in all."""
    return sum(part.seconds for part in parts)


def report(parts: Sequence[Part]) -> str:
    """The whole in Markdown: runs, blows, memory, disk, faults."""
    parts = [part for part in parts if part.looks]
    if not parts:
        return "nothing was run yet"
    events = sum((Counter(part.looks[-1]["events"]) for part in parts), Counter[str]())
    commits = ", ".join(dict.fromkeys(str(part.begun.get("commit", "?")) for part in parts))
    load = _range([float(look["load"]) for part in parts for look in part.looks])
    lines = [
        f"{_duration(seconds(parts))} in {len(parts)} part{'s' * (len(parts) > 1)}, of commit {commits}; load {load} "
        f"on {parts[-1].begun.get('cores')} cores",
        "",
        "| runs | asked | answered right | of them recovered | ended early | refused by name | wrong tokens | "
        "receipts refused | broken |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_runs_row(name, summed(parts, asker)) for name, asker in (("a requester", "ring"), ("the gateway", "http"))),
        "",
        f"Blows: {', '.join(f'{count} {name}' for name, count in sorted(events.items())) or 'none'}.",
    ]
    for number, part in enumerate(parts, 1):
        lines += ["", f"Part {number}, {_duration(part.seconds)}, {part.why}:", "", *_memory(part)]
    faults = [text for part in parts for text in part.faults]
    lines += ["", "Faults:", *(f"- {text}" for text in faults)] if faults else ["", "No fault."]
    return "\n".join(lines)


def _runs_row(name: str, tally: Tally) -> str:
    refused = ", ".join(f"{count} {why}" for why, count in sorted(tally.refused.items())) or "0"
    cells = (tally.asked, tally.answered, tally.recovered, tally.early, refused, tally.wrong, tally.unverified)
    return f"| {name} | {' | '.join(map(str, cells))} | {tally.broken} |"


def _memory(part: Part) -> list[str]:
    """A row for each process that nobody disturbed, and what its folder takes."""
    lines = [
        "| process | MB resident: first, half, last | MB a minute over the last half: all, its own, mapped files | "
        "descriptors | threads | MB on disk: first, last | a day at that rate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in part.looks[-1]["sizes"]:
        sizes = part.sizes(name)
        late = [(at, size) for at, size in sizes if at >= SETTLED * part.seconds]
        rises = [
            slope([(at, getattr(size, of) / MB) for at, size in late]) for of in ("resident", "anonymous", "mapped")
        ]
        shown = [sizes[0][1], sizes[len(sizes) // 2][1], sizes[-1][1]]
        cells = [
            name,
            ", ".join(f"{size.resident / MB:.1f}" for size in shown),
            ", ".join(f"{rise:+.2f}" for rise in rises),
            f"{shown[0].descriptors} to {shown[-1].descriptors}",
            f"{shown[0].threads} to {shown[-1].threads}",
            *_disk(part, name),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _disk(part: Part, name: str) -> tuple[str, str]:
    looks = [look for look in part.looks if name in look.get("disk", {})]
    if len(looks) < 2:
        return "", ""
    first, last = (look["disk"][name] / MB for look in (looks[0], looks[-1]))
    spent = looks[-1]["s"] - looks[0]["s"]
    return f"{first:.1f}, {last:.1f}", f"{(last - first) / spent * DAY_S:.0f} MB" if spent else ""


def _duration(spent: float) -> str:
    hours, rest = divmod(round(spent), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"
