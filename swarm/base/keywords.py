"""Keywords of the Python API: a misspelt one is an error that names the right one, never passed over."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from swarm.base.errors import UsageError


def check_keywords(given: Mapping[str, Any], kind: type) -> None:
    """Raises UsageError for a keyword that `kind` (a TypedDict) does not have."""
    known = list(kind.__annotations__)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise UsageError(f"expected a known option, found {name!r}{hint}")
