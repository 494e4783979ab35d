"""Which layers a node takes, and when it may move: pure decisions over what the swarm has told.

Taking a block: as many consecutive layers as fit; holes first, then the range whose removal of the weakest layer
helps most, then the weakest range, then nearness. Nodes that join at once settle by a fixed order: each sees the
claims of nodes with a smaller name and none of the others, so every one ends where it would have ended had they
come one after another.

Staying: a joining node never makes another reload. A node moves only to fill a hole, or when the swarm's
narrowest layer would gain over 20%, and both of those strictly raise a bounded quantity, so that moves end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import UsageError
from swarm.planner.fleet import Member, ModelShape, Rtts, Speed, gaps, say_layers, usual_speed
from swarm.planner.slicing import Slicing, kept_bytes, slice_layers

MOVE_GAIN = 1.2
MOVE_EVERY_S = 300.0
FILL_EVERY_S = 10.0
CLOSE = 0.05
ROWS = 8


@dataclass(frozen=True)
class Room:
    """What a node can give. Bytes are free bytes for weights and KV together.

    `context_tokens`: tokens of KV per layer that must fit besides the weights, all sessions together.
    `max_layers`: the user's limit, None for what fits. `overflow_bytes`: spare RAM beside a GPU. `more_bytes`: of
    further GPUs, in the order in which they take layers; `speed` is then that of all of them together.
    """

    node: str
    memory_bytes: int
    context_tokens: int = 0
    max_layers: int | None = None
    speed: Speed | None = None
    overflow_bytes: int = 0
    overflow_speed: Speed | None = None
    more_bytes: tuple[int, ...] = ()

    @property
    def devices(self) -> tuple[int, ...]:
        """Bytes of each device that there is: the first, more of them, spare RAM."""
        return (self.memory_bytes, *self.more_bytes, *((self.overflow_bytes,) if self.overflow_bytes else ()))


@dataclass(frozen=True)
class BlockChoice:
    """Layers [first, last), the last `overflow` of them in spare RAM, and why in words for people."""

    first: int
    last: int
    overflow: int
    reason: str

    @property
    def layers(self) -> int:
        return self.last - self.first


def fit(model: ModelShape, room: Room, first: int) -> tuple[int, int]:
    """(layers, of which overflow) that fit from layer `first` on: `lay`, summed up; where not one layer fits a device,
    as many as all devices hold in slices."""
    if (cut := sliced(model, room, first)) is not None:
        return cut.layers, 0
    laid = lay(model, room, first)
    return sum(laid), laid[-1]


def sliced(model: ModelShape, room: Room, first: int) -> Slicing | None:
    """The layers from `first` on cut over the node's devices (the first, more of them, spare RAM), where none of them
    holds one whole."""
    return slice_layers(model, room.devices, room.context_tokens, first, room.max_layers)


def lay(model: ModelShape, room: Room, first: int) -> tuple[int, ...]:
    """How many layers from layer `first` on fit on each device in turn, the last of them spare RAM: one device is full
    before the next takes any. Embedding and output projection are counted; nothing from a layer on that no block may
    begin with, and no part of layers that stay together."""
    limit = model.n_layers - first if room.max_layers is None else min(room.max_layers, model.n_layers - first)
    others = (*room.more_bytes, room.overflow_bytes)
    free = [room.memory_bytes, *(bytes_ - model.every_bytes for bytes_ in others)]
    laid = [0] * len(free)
    at = 0
    need = model.every_bytes + (model.head_bytes if first == 0 else 0)
    for begin, end in model.parts(first, model.n_layers) if first not in model.forbidden else ():
        if sum(laid) + end - begin > limit:
            break
        need += sum(model.layer_bytes[begin:end]) + model.session_bytes(begin, end, room.context_tokens)
        tail = model.tail_bytes if end == model.n_layers else 0
        while at < len(free) and need + tail > free[at]:
            at += 1
        if at == len(free):
            break
        free[at] -= need
        laid[at] += end - begin
        need = 0
    return tuple(laid)


def choose_block(model: ModelShape, room: Room, members: Sequence[Member], rtts: Rtts | None = None) -> BlockChoice:
    """The block that this node should take, given the others. Raises UsageError when not one layer fits."""
    seen = settled(room.node, members)
    usual = usual_speed([*seen, Member(room.node, speed=room.speed)])
    windows = [(a, *fit(model, room, a)) for a in range(model.n_layers)]
    longest = max(count for _, count, _ in windows)
    if longest == 0:
        parts = model.parts(0, model.n_layers)
        need = min(sum(model.layer_bytes[a:b]) + model.session_bytes(a, b, room.context_tokens) for a, b in parts)
        least = "one layer" if min(b - a for a, b in parts) == 1 else "the smallest part"
        raise UsageError(
            f"{least} of {model.name} with KV for {room.context_tokens} tokens needs {need / 1e9:.2f} GB, found "
            f"{max((room.memory_bytes, *room.more_bytes)) / 1e9:.2f} GB free"
            f"{_together(room)}{_uncut(model, room)}; free memory, ask for fewer contexts or "
            "use another device (cause: memory)"
        )
    capacity = throughput(seen, model.n_layers, usual)
    holes = gaps(capacity)
    hole = capacity == 0
    # A window at an end of the model may be shorter, since the embedding or the output projection eats room.
    ends = {windows[0], next((w for w in windows if w[0] + w[1] == model.n_layers), windows[0])}
    options = [w for w in windows if w[1] == longest or (w[1] and w in ends)]
    near = _nearness(room.node, seen, model.n_layers, rtts)
    # A window that splits a hole must fill clearly more than the embedding costs: a one-layer rest is a whole hop.
    split = 1 + longest - min(count for _, count, _ in options)

    def rank(window: tuple[int, int, int]) -> tuple[float, ...]:
        first, count, overflow = window
        last = first + count
        filled = int(hole[first:last].sum())
        left = len(gaps(np.where(_inside(first, last, model.n_layers), 1, capacity)))
        closed = filled - split * max(0, left - len(holes))
        mine = 1 / _block_ms(room, count, overflow, usual)
        after = capacity + mine * _inside(first, last, model.n_layers)
        narrowest = float(after.min())
        weak = float(np.mean(1 / (capacity[first:last] + mine)))
        distance = near(first, last)
        return (-closed, left, -_step(narrowest), -_step(weak), distance if not holes else 0.0, -count, first)

    first, count, overflow = min(options, key=rank)
    why = _why(first, first + count, hole, capacity, seen)
    if sliced(model, room, first) is not None:
        why += "; no device has room for a layer, so each is cut over all of them"
    return BlockChoice(first, first + count, overflow, why)


def reconsider(
    model: ModelShape,
    room: Room,
    current: BlockChoice,
    members: Sequence[Member],
    *,
    idle: bool,
    since_move_s: float,
    rtts: Rtts | None = None,
) -> BlockChoice | None:
    """A better block for a node that already serves one, or None to stay, which is the usual answer.

    `members` may or may not include the node itself. `idle`: no run uses it. `since_move_s`: seconds since it
    took its present block: FILL_EVERY_S at least to fill a hole, MOVE_EVERY_S for a gain. Announce the result as a
    claim, wait until the swarm had time to answer, ask again, and move only when the answer is the same.
    """
    if not idle or since_move_s < FILL_EVERY_S:
        return None
    others = settled(room.node, members)
    usual = usual_speed([*others, Member(room.node, speed=room.speed)])
    without = throughput(others, model.n_layers, usual)
    mine = 1 / _block_ms(room, current.layers, current.overflow, usual)
    now = without + mine * _inside(current.first, current.last, model.n_layers)
    best = choose_block(model, room, members, rtts)
    if (best.first, best.last) == (current.first, current.last):
        return None
    theirs = 1 / _block_ms(room, best.layers, best.overflow, usual)
    then = without + theirs * _inside(best.first, best.last, model.n_layers)
    before, after = int((now == 0).sum()), int((then == 0).sum())
    if after < before and not np.any((now > 0) & (then == 0)):
        filled = gaps(np.where((now == 0) & (then > 0), 0, 1))
        return BlockChoice(best.first, best.last, best.overflow, f"fills {say_layers(filled)}, held by nobody")
    if since_move_s < MOVE_EVERY_S:
        return None
    if before == after == 0 and float(then.min()) > MOVE_GAIN * float(now.min()):
        gain = 100 * (float(then.min()) / float(now.min()) - 1)
        return BlockChoice(best.first, best.last, best.overflow, f"widens the narrowest layer by {gain:.0f}%")
    return None


def may_unload(model: ModelShape, node: str, members: Sequence[Member]) -> bool:
    """Whether requests lose nothing while `node` holds nothing: others hold its layers, or none can pass anyway."""
    others = throughput(settled(node, members), model.n_layers, usual_speed(members))
    own = next((m for m in members if m.node == node), None)
    if own is None:
        return True
    alone = (others == 0) & _inside(own.first, own.last, model.n_layers)
    return not alone.any() or bool((others[~_inside(own.first, own.last, model.n_layers)] == 0).any())


def settled(node: str, members: Sequence[Member]) -> list[Member]:
    """The others as `node` must take them: claims of smaller names as done, claims of larger names as not made."""
    seen: list[Member] = []
    for member in members:
        if member.node == node or member.state in ("left", "draining"):
            continue
        if member.claim is not None and member.node < node:
            first, last = member.claim
            seen.append(Member(member.node, first, last, member.speed, owner=member.owner))
        elif member.state != "joining" and member.layers:
            seen.append(member)
    return seen


def throughput(members: Sequence[Member], n_layers: int, usual: Speed) -> NDArray[np.float64]:
    """Passes per millisecond that the holders of each layer can do together: [layers], 0 where nobody holds it."""
    steps = np.zeros(n_layers + 1)
    count = np.zeros(n_layers + 1, np.int64)
    for member in members:
        if 0 <= member.first < member.last <= n_layers:
            own = 1 / max(float(member.layer_ms(ROWS, usual).sum()), 1e-6)
            steps[member.first] += own
            steps[member.last] -= own
            count[member.first] += 1
            count[member.last] -= 1
    # Counted apart, so that rounding never makes a hole look held.
    return np.where(np.cumsum(count[:-1]) > 0, np.maximum(np.cumsum(steps[:-1]), 1e-12), 0.0)


def _together(room: Room) -> str:
    """What several devices have free, in words."""
    return f" on one device, {sum(room.devices) / 1e9:.2f} GB on all" if len(room.devices) > 1 else ""


def _uncut(model: ModelShape, room: Room) -> str:
    """What of a part the first of several devices holds even where matrices are cut over all, in words."""
    if len(room.devices) < 2:
        return ""
    needs = [kept_bytes(model, *part, room.context_tokens) for part in model.parts(0, model.n_layers)]
    ends = max(model.head_bytes, model.tail_bytes)
    return (
        f"; where matrices are cut over devices {min(needs) / 1e9:.2f} GB of it stay on the first (keys and values, "
        f"norms), and at the model's ends up to {ends / 1e9:.2f} GB more (embedding, head)"
    )


def _block_ms(room: Room, layers: int, overflow: int, usual: Speed) -> float:
    as_member = Member(room.node, 0, layers, room.speed, overflow, room.overflow_speed)
    return max(float(as_member.layer_ms(ROWS, usual).sum()), 1e-6)


def _inside(first: int, last: int, n_layers: int) -> NDArray[np.bool_]:
    at = np.arange(n_layers)
    return (at >= first) & (at < last)


def _step(value: float) -> float:
    """Values within about 5% count as equal, so that nearness can speak."""
    return float(np.floor(np.log(max(value, 1e-15)) / np.log(1 + CLOSE)))


def _nearness(node: str, members: Sequence[Member], n_layers: int, rtts: Rtts | None) -> Callable[[int, int], float]:
    """Mean of the milliseconds to the nearest holders of the layers before and after a window."""
    if rtts is None or not members:
        return lambda first, last: 0.0
    ms = rtts([node, *(m.node for m in members)])[0, 1:]
    least = np.full(n_layers, np.inf)
    for member, distance in zip(members, ms, strict=True):
        part = least[member.first : member.last]
        np.minimum(part, distance, out=part)

    def near(first: int, last: int) -> float:
        edges = [*([least[first - 1]] if first > 0 else []), *([least[last]] if last < n_layers else [])]
        return float(np.mean(edges)) if edges else 0.0

    return near


def _why(
    first: int,
    last: int,
    hole: NDArray[np.bool_],
    capacity: NDArray[np.float64],
    members: Sequence[Member],
) -> str:
    filled = gaps(np.where(hole & _inside(first, last, len(hole)), 0, 1))
    if not any(m.layers for m in members):
        return "first here"
    if filled:
        return f"{say_layers(filled)} held by nobody"
    count = sum(m.first < last and m.last > first for m in members)
    share = float(np.mean(capacity[first:last]) / np.mean(capacity))
    return f"the weakest range: {share:.0%} of the mean throughput, shared with {count}"
