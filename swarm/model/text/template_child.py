"""The process in which chat templates are rendered: a template comes with a model, from anybody, and is a program.

One JSON object a line in, one a line out. Memory, processor time and output are bounded here, the wall clock by the
parent, which ends the process (see swarm.model.text.template).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from swarm.base.linechild import answer, bound_memory, bound_processor

CPU_S = 5
"""Processor time of one rendering. An honest one takes milliseconds."""
MEMORY_BYTES = 256 << 20
"""That templates may take beyond what the interpreter needs."""
OUTPUT_CHARS = 1 << 17
"""Of a rendering, beside four times what was given to it. A template's own words are a few thousand. What it gives is
then tokenized by the process that asked, which takes some 300 bytes a character: 1 << 20 of them cost that 310 MB."""


def renderer() -> Any:
    """transformers' `render_jinja_template`, by its own code, without what its packages' faces import.

    The faces take 0.45 s of a processor (transformers 5.23), of the 0.6 until the first rendering; the module itself
    needs three files. Where another version lays them out in another way, it is imported as usual.
    """
    found = importlib.util.find_spec("transformers")
    if found is not None and "transformers" not in sys.modules:
        folders = list(found.submodule_search_locations or ())
        faces = {"transformers": folders, "transformers.utils": [f"{folder}/utils" for folder in folders]}
        for name, places in faces.items():
            face = ModuleType(name)
            face.__path__, face.__spec__ = places, ModuleSpec(name, None, is_package=True)
            sys.modules[name] = face
        try:
            return _render()
        except (ImportError, AttributeError):
            for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
                del sys.modules[name]
    return _render()


def _render() -> Any:
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


def main() -> None:
    """Render until stdin ends."""
    render_jinja_template = renderer()
    sys.setrecursionlimit(1000)
    bound_memory(MEMORY_BYTES)
    answer({"ready": True})
    for line in sys.stdin.buffer:
        bound_processor(CPU_S)
        try:
            text = render_jinja_template(**json.loads(line))[0][0]
            if len(text) > OUTPUT_CHARS + 4 * len(line):
                answer({"limit": f"{OUTPUT_CHARS + 4 * len(line)} characters"})
            else:
                text.encode()  # half of a surrogate pair is no text, and no tokenizer takes it
                answer({"text": text})
        except MemoryError:
            answer({"limit": f"{MEMORY_BYTES >> 20} MiB of memory"})
        except Exception as error:  # whatever a template can raise is its refusal
            answer({"refused": f"{error}"[:1000] or type(error).__name__})
