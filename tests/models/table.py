"""`docs/models.md` from what the sweep found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import transformers

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

- **exact**: it says what transformers says, however it is cut. A text of a `longrope` model ends where
  its frequencies change.
- **refused**: loading ends with this reason; it never runs and says something else.
- **not built**: the rule that makes tiny configs does not fit this class, so nothing is known; loading still tries
  every cut and refuses what differs.

{exact} exact, {refused} refused, {unbuilt} not built, {others} wrong or crashed.

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
    return head + "".join(f"| {f.case} | {f.name} | {f.verdict} | {_cell(f.reason)} |\n" for f in ordered)


def rows(page: str) -> list[Found]:
    """What a page of `table` says, back."""
    lines = [
        line[2:].rstrip(" |").split(" | ", 3) for line in page.partition("| --- | --- | --- | --- |\n")[2].splitlines()
    ]
    return [
        Found(case, name, verdict.removesuffix(" |"), *(part.replace("\\|", "|").replace("&lt;", "<") for part in why))
        for case, name, verdict, *why in lines
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
