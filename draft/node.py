"""A node of the token tree."""

from __future__ import annotations

import math

from draft.base import Child, DraftNode


class Node:
    """One token of the tree.

    slot     its scratch slot, -1 when it has none (unsent, or certain)
    depth    how far below the root it was when it was sent
    covered  chance that one of its children is the true next token
    claims   share of the next token by drafter and token
    answer   the true next token once an answer named it, -1 before
    asked    bit per drafter: it was asked for children
    """

    __slots__ = (
        "answer",
        "asked",
        "children",
        "claims",
        "covered",
        "depth",
        "id",
        "live",
        "parent",
        "position",
        "proposals",
        "score",
        "sent",
        "share",
        "slot",
        "token",
    )

    def __init__(self, id: int, parent: Node | None, token: int, position: int, share: float) -> None:
        self.id = id
        self.parent = parent
        self.token = token
        self.position = position
        self.share = share
        self.score: float = (parent.score if parent else 0.0) + math.log(share)
        self.children: dict[int, Node] = {}
        self.claims: dict[int, dict[int, float]] = {}
        self.covered = 0.0
        self.depth = 0
        self.proposals: dict[int, tuple[Child, ...]] = {}
        self.asked = 0
        self.slot = -1
        self.sent = False
        self.answer = -1
        self.live = True

    def known_as(self, parent: int) -> DraftNode:
        return DraftNode(self.id, parent, self.token, self.position)
