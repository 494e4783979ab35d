"""Every causal class of transformers against itself, cut: exact, or refused with a reason.

A tiny checkpoint is saved as a folder and opened by the real loader, cut into 1, 2 and 3 blocks, and asked for: a
prompt in two chunks, a token, a tree of drafts of which one path is committed and the others are rejected, another
token; a second session runs in the same forwards. What comes out must be what the whole model of transformers says.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from swarm.base.errors import SwarmError
from swarm.model.block import Block, load_block
from swarm.model.earliest import TakeEarliest
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.linear.shapes import ConvShape, PoolShape, RuleShape, ScanShape
from swarm.model.rows import Commits, Layout, no_commits
from tests.models.configs import LAYERS, VOCAB, class_name, tiny_config
from tests.models.drafters import drafters
from tests.swarm.model.tiny import CPU, Chain, certain, drafted, path_to, whole_model

CUTS = ((0, LAYERS), (0, 2, LAYERS), (0, 1, 4, LAYERS))
LAYOUT = Layout(scratch=32, context=64)
PROMPTS = (11, 5)
TREE = (-1, 0, 0, 1, 2, -1)
_LONGEST = max(PROMPTS) + len(TREE) + 2
COMMITTED = 4
"""The row of the tree whose path is committed."""

MOST_WEIGHTS = 20 << 20

EXACT, REFUSED, WRONG, CRASH, UNBUILT = "exact", "refused", "wrong", "crash", "not built"


_STATES: dict[type[Any], str] = {ConvShape: "convolution", RuleShape: "rule", ScanShape: "scan"}
_STATES |= {PoolShape: "pooled entries"}


@dataclass(frozen=True)
class Found:
    """What the sweep says of a case. reason: of a refusal or a fault. Of exact ones keeps: what a token leaves in a
    session's memory; cuts: where no stage may begin; since: the day that the page said so first; drafts: what may
    draft."""

    case: str
    name: str
    verdict: str
    reason: str = ""
    keeps: str = ""
    cuts: str = ""
    since: str = ""
    drafts: str = ""


def sweep(case: str, folder: Path, dtype: torch.dtype = torch.float32) -> Found:
    """One case in all cuts. `folder`: empty, for the checkpoint."""
    name = class_name(case)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        try:
            config = tiny_config(case)
            with torch.device("meta"):
                size = sum(p.numel() for p in whole_model(config).parameters())
            if size > MOST_WEIGHTS:
                return Found(case, name, UNBUILT, f"its smallest config by rule has {size >> 20} million weights")
            model = _random_model(config)
            model.save_pretrained(folder / "model")
        except Exception as exc:
            return Found(case, name, UNBUILT, _first_line(exc))
        try:
            _load(folder, CUTS[1], dtype)
            worst = _worst(folder, model, dtype)
        except SwarmError as exc:
            return Found(case, name, REFUSED, _reason(str(exc)))
        except Exception as exc:
            return Found(case, name, CRASH, _first_line(exc))
    if isinstance(worst, str):
        return Found(case, name, UNBUILT, worst)
    limit = 2e-4 if dtype == torch.float32 else 0.15
    if worst > limit:
        return Found(case, name, WRONG, f"apart by {worst:.1e}")
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        whole = _load(folder, CUTS[0], dtype)[0]
        drafts = drafters(folder, type(model))
    return Found(case, name, EXACT, keeps=kept(whole), cuts=forbidden(whole), drafts=drafts)


def drafting(case: str, folder: Path) -> str:
    """What may draft for an exact case, without the rest of the sweep."""
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        model = _random_model(tiny_config(case))
        model.save_pretrained(folder / "model")
        return drafters(folder, type(model))


def kept(block: Block) -> str:
    """What a token leaves in a session's memory, and how many numbers of it there are in all layers."""
    shapes = block.kv_shapes
    attention = [shape for shape in shapes if shape.heads]
    what = ["latent" if any(0 < s.latent < s.dim for s in attention) else "keys and values"] if attention else []
    what += ["index"] if any(shape.index for shape in shapes) else []
    numbers = f" ({sum(shape.numbers for shape in shapes)})" if attention else ""
    states = {_STATES[type(state)] for shape in shapes for state in shape.states}
    return "; ".join(part for part in (" and ".join(what) + numbers, ", ".join(sorted(states))) if part)


def forbidden(block: Block) -> str:
    """Layers that no stage may begin with, as ranges."""
    cuts = sorted(block.ties.forbidden)
    starts = [cut for cut in cuts if cut - 1 not in cuts]
    ends = [cut for cut in cuts if cut + 1 not in cuts]
    return ", ".join(f"{a} to {b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))


def _worst(folder: Path, model: Any, dtype: torch.dtype) -> float | str:
    """Largest difference in any cut; words when the class does not run by itself."""
    try:
        expected = Reference(model, dtype)
    except Exception as exc:
        return _first_line(exc)
    return max(_apart(folder, cuts, expected, dtype) for cuts in CUTS)


class Reference:
    """What the whole model says, in `dtype`: logits of every row that the sweep asks for."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict(), dtype=dtype)
        self.model.eval()
        rope = getattr(model.config, "rope_parameters", None) or {}
        far = getattr(model.config, "max_position_embeddings", 0) or 0  # within it `dynamic` changes nothing
        self.stepwise = rope.get("rope_type") == "longrope" or rope.get("rope_type") == "dynamic" and far < 2 * _LONGEST
        source = np.random.default_rng(5)
        self.prompts = [source.integers(3, VOCAB, n).tolist() for n in PROMPTS]
        self.after = [source.integers(3, VOCAB, 2).tolist() for _ in PROMPTS]
        self.trees = [source.integers(3, VOCAB, len(TREE)).tolist() for _ in PROMPTS]
        with TakeEarliest():  # transformers takes any of the positions that an index scores the same
            self.logits = [self._all(s) for s in range(len(PROMPTS))]

    def _all(self, s: int) -> torch.Tensor:
        """Rows: the prompt's last, the token after it, the tree's, the token behind the committed path."""
        line = self.prompts[s] + self.after[s][:1]
        rows = list(self._decode(line, len(self.prompts[s]), 2))
        for row in range(len(TREE)):
            path = [self.trees[s][i] for i in path_to(row, TREE)]
            rows.append(self._decode(line + path, len(self.prompts[s]), 1)[0])
        path = [self.trees[s][i] for i in path_to(COMMITTED, TREE)]
        rows.append(self._decode(line + path + self.after[s][1:], len(self.prompts[s]), 1)[0])
        return torch.stack(rows)

    @torch.inference_mode()
    def _decode(self, tokens: Sequence[int], prompt: int, last: int) -> torch.Tensor:
        """Logits of the last rows; where frequencies follow the text, with one cache: the prompt at once, then token
        by token. Beyond the switch of `longrope` that is what a block computes, and not what `generate` of Phi-3 says,
        which drops its cache there: runs end before (tests/ring/test_families.py).
        """
        if not self.stepwise:
            return self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -last:].float()  # type: ignore[no-any-return]
        cache = None
        rows: list[torch.Tensor] = []
        for a, b in [(0, prompt), *((i, i + 1) for i in range(prompt, len(tokens)))]:
            out = self.model(torch.tensor([tokens[a:b]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1].float())
        return torch.stack(rows[-last:])


def _apart(folder: Path, cuts: Sequence[int], expected: Reference, dtype: torch.dtype) -> float:
    """Largest difference from the reference, over its size."""
    blocks = _load(folder, cuts, dtype)
    chain = Chain(blocks, [KVPool(block, 1 << 30) for block in blocks])
    opened = [chain.open(LAYOUT) for _ in PROMPTS]
    got: list[list[torch.Tensor]] = [[] for _ in PROMPTS]

    def run(jobs: Sequence[Any], keep: bool = True) -> None:
        for s, out in enumerate(chain.run([(opened[s], *job) for s, job in enumerate(jobs)])):
            assert blocks[-1].tail and out.dtype == torch.float32
            got[s] += [out] if keep else []

    prompts = expected.prompts
    run([(no_commits(), certain(p[:3], 0, LAYOUT, False)) for p in prompts], False)
    run([(no_commits(), _last(certain(p[3:], 3, LAYOUT))) for p in prompts])
    run([(no_commits(), certain(a[:1], len(p), LAYOUT)) for p, a in zip(prompts, expected.after, strict=True)])
    slots = [31, 30, 29, 28, 27, 26]
    run(
        [
            (no_commits(), drafted(t, TREE, slots, len(p) + 1, LAYOUT))
            for p, t in zip(prompts, expected.trees, strict=True)
        ]
    )
    path = path_to(COMMITTED, TREE)
    jobs = []
    for p, a in zip(prompts, expected.after, strict=True):
        places = np.arange(len(p) + 1, len(p) + 1 + len(path), dtype=np.uint32)
        commits = Commits(np.array([slots[i] for i in path], np.uint32), places)
        jobs.append((commits, certain(a[1:], len(p) + 1 + len(path), LAYOUT)))
    run(jobs)
    worst = 0.0
    for s, rows in enumerate(got):
        a, b = torch.cat(rows), expected.logits[s]
        if dtype != torch.float32:  # an expert chosen by a rounding changes single rows
            worst = max(worst, float(((a - b).norm(dim=1) / b.norm(dim=1)).median()))
        else:
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst if worst == worst else float("inf")


def _load(folder: Path, cuts: Sequence[int], dtype: torch.dtype) -> list[Block]:
    store = ModelStore(folder / "store")
    forbidden = store.open(str(folder / "model")).manifest.ties.forbidden
    cuts = [cut for cut in cuts if cut not in forbidden]
    return [
        load_block(store.open(str(folder / "model"), (a, b)), a, b, CPU, dtype)
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]


def _last(rows: Any) -> Any:
    rows.want[:-1] = False
    return rows


def _random_model(config: Any) -> Any:
    """Weights that all matter and stay of one size from layer to layer."""
    torch.manual_seed(3)
    model = whole_model(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        noise = torch.randn_like(weight)
        weight.data = weight.data + 0.1 * noise if weight.dim() == 1 or "norm" in name else noise * 0.2
    for name, table in model.named_buffers():
        if name.endswith(".tid2eid"):  # which experts a token goes to; each to two of them
            table.copy_(torch.stack([torch.randperm(LAYERS - 2)[: table.shape[1]] for _ in table]))
    return model


def _reason(message: str) -> str:
    """The part of a refusal that says why."""
    _, _, why = message.partition("cannot be cut into blocks: ")
    return (why.rpartition("; use another")[0] or why) if why else message


def _first_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0][:150]}"


@contextlib.contextmanager
def _quiet() -> Any:
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
