"""`docs/models.md` from what the sweep found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import transformers

from swarm.model.files.gguf_families import KINDS
from tests.models.configs import VARIANTS
from tests.models.sweep import EXACT, REFUSED, UNBUILT, Found

DOC = Path(__file__).resolve().parents[2] / "docs" / "models.md"

_HEAD = """# Models

Made by `make sweep` (`python -m tests.models --write`), single rows by `python -m tests.models --write TYPE ...`; do
not edit. Every causal language model class of
transformers {version} as a tiny random checkpoint, saved and loaded as a folder, in 1, 2 and 3 blocks: a prompt in two
chunks, a token, a tree of drafts with a commit and rejected branches, and a second session in the same forwards,
against the whole model of transformers, in float32 (within 2e-4 of the largest logit) and in bfloat16 (the median row
within 15% of its size, since sums in another order round otherwise at each of six layers: this finds a lost factor or
norm, not a small error; the float32 run is for those).

- **exact**: since that day it says what transformers says, however it is cut. A text of a `longrope` model ends where
  its frequencies change. Of positions that an index scores the same at the edge of what it takes, the earliest are
  taken; transformers takes any, others with a cache than without (`findings/index-attention-ties.sh`), so it is told
  the same. Scores are cut off at zero, so ties are at zero: of the choices of a tiny DeepSeek V3.2 whose index has one
  head (`-ties`) 42 in 100 have one, with eight heads none (`tests/models/test_index_ties.py`); released models have 64.
- **refused**: loading ends with this reason; it never runs and says something else.
- **not built**: the rule that makes tiny configs does not fit this class, so nothing is known; loading still tries
  every cut and refuses what differs.
- **keeps**: what a token leaves in the memory of its session: keys and values, a latent, keys of an index (in brackets
  how many numbers, over the six layers of the tiny model: two bytes each in bfloat16), and inputs or states of
  recurrent layers, which end growing behind a window.
- **cut**: layers of the six that no stage may begin with, since they read an earlier one's entries; else anywhere.
- **drafts**: what may propose tokens. *own head*: files of this class come with a multi-token prediction head, and one
  is loaded and computed at the tail; *EAGLE*: so is an EAGLE head in a folder; *small models*: of the same tokenizer,
  or of another across vocabularies, whatever the class ([speculation.md](speculation.md) has the order). Tried on the
  tiny checkpoint with heads of random weights; text that came before drafts for all.
- **GGUF**: files of this class are read too. Safetensors of all are read ([formats.md](formats.md)).

{exact} exact, {refused} refused, {unbuilt} not built, {others} wrong or crashed.

| type | class | | keeps | cut | drafts | GGUF |
| --- | --- | --- | --- | --- | --- | --- |
"""

_REST = """
| type | class | | why |
| --- | --- | --- | --- |
"""


def table(found: Sequence[Found]) -> str:
    """The whole page."""
    classes = [f for f in found if f.case not in VARIANTS]

    def count(verdict: str) -> int:
        return sum(f.verdict == verdict for f in classes)

    known = {v: count(v) for v in (EXACT, REFUSED, UNBUILT)}
    head = _HEAD.format(
        version=".".join(transformers.__version__.split(".")[:2]),
        exact=known[EXACT],
        refused=known[REFUSED],
        unbuilt=known[UNBUILT],
        others=len(classes) - sum(known.values()),
    )
    order = {EXACT: 0, REFUSED: 1}
    ordered = sorted(found, key=lambda f: (order.get(f.verdict, 2), f.case))
    exact = [
        f"| {f.case} | {f.name} | {f.verdict} {f.since} | {f.keeps} | {f.cuts or 'anywhere'} | "
        f"{f.drafts} | {'yes' if f.name in KINDS else ''} |\n"
        for f in ordered
        if f.verdict == EXACT
    ]
    others = [f"| {f.case} | {f.name} | {f.verdict} | {_cell(f.reason)} |\n" for f in ordered if f.verdict != EXACT]
    return head + "".join(exact) + _REST + "".join(others)


def rows(page: str) -> list[Found]:
    """What a page of `table` says, back."""
    _, first, rest = page.split("| type | class | |")
    found = []
    for line in first.splitlines()[2:]:
        if line:
            case, name, verdict, keeps, cuts, *more = (part.strip() for part in line[1:].split("|", 6))
            drafts = more[0] if len(more) == 2 else ""
            since = verdict.removeprefix(EXACT).strip()
            found.append(Found(case, name, EXACT, "", keeps, "" if cuts == "anywhere" else cuts, since, drafts))
    for line in rest.splitlines()[2:]:
        case, name, verdict, why = line[2:].removesuffix(" |").split(" | ", 3)
        found.append(Found(case, name, verdict, why.replace("\\|", "|").replace("&lt;", "<")))
    return found


def dated(found: Sequence[Found], before: Sequence[Found], today: str) -> list[Found]:
    """What was found, with the day that the page before says of what it had as exact, else with today's."""
    days = {f.case: f.since for f in before if f.verdict == EXACT}
    return [replace(f, since=days.get(f.case) or today) if f.verdict == EXACT else f for f in found]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
