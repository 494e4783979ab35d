"""The process in which chat templates are rendered: a template comes with a model, from anybody, and is a program.

One JSON object a line in, one a line out. Memory, processor time and output are bounded here, the wall clock by the
parent, which ends the process (see swarm.model.text.template).
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

CPU_S = 5
"""Processor time of one rendering. An honest one takes milliseconds."""
MEMORY_BYTES = 256 << 20
"""That templates may take beyond what the interpreter needs."""
OUTPUT_CHARS = 1 << 20
"""Of a rendering, beside four times what was given to it."""


def main() -> None:
    """Render until stdin ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    sys.setrecursionlimit(1000)
    _bound(resource.RLIMIT_FSIZE, 0)
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_AS, _mapped_bytes() + MEMORY_BYTES)
    _answer({"ready": True})
    for line in sys.stdin.buffer:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        _bound(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime) + 1 + CPU_S)
        try:
            text = render_jinja_template(**json.loads(line))[0][0]
            if len(text) > OUTPUT_CHARS + 4 * len(line):
                _answer({"limit": f"{OUTPUT_CHARS + 4 * len(line)} characters"})
            else:
                _answer({"text": text})
        except MemoryError:
            _answer({"limit": f"{MEMORY_BYTES >> 20} MiB of memory"})
        except Exception as error:  # whatever a template can raise is its refusal
            _answer({"refused": f"{error}"[:1000] or type(error).__name__})


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def _bound(kind: int, value: int) -> None:
    """Lower a soft limit. Where a system does not know this one, the parent's deadline remains."""
    try:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    except (ValueError, OSError):
        pass


def _mapped_bytes() -> int:
    """Address space in use now, bytes; a guess where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30
