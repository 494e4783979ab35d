"""The process in which constraints are compiled for a first time: they come from anybody, and some never end.

llguidance bounds its own work in counts, but not all of it: intersections of patterns (`allOf`) are simplified outside
of those counts, in time exponential in their number. So it is tried here first, without a vocabulary, where it can be
ended. One JSON object a line in, one a line out.
"""

from __future__ import annotations

import json
import sys

from llguidance import LLMatcher

from swarm.base.linechild import answer, bound_memory, bound_processor

CPU_S = 2
MEMORY_BYTES = 512 << 20


def main() -> None:
    """Compile until stdin ends."""
    from swarm.model.grammars import bounds

    bound_memory(MEMORY_BYTES)
    answer({"ready": True})
    for line in sys.stdin.buffer:
        bound_processor(CPU_S)
        try:
            failed, said = LLMatcher.validate_grammar_with_warnings(json.loads(line)["grammar"], None, limits=bounds())
            answer({"refused": said[0][:4000]} if failed else {"fine": True})
        except MemoryError:
            answer({"refused": f"it takes more than {MEMORY_BYTES >> 20} MiB of memory"})
        except Exception as error:  # whatever a library makes of bytes from anybody is its refusal
            answer({"refused": f"{error}"[:1000] or type(error).__name__})
