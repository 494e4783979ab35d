"""Text into the clipboard: by the desktop's own program, else by the terminal itself, which works through ssh too."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

PROGRAMS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"), ("clip.exe",))
"""Of macOS, Wayland, X11 and Windows, as they are tried: one without its desktop ends with an error."""
WAIT_S = 5.0


def copy(text: str, terminal: TextIO, programs: Sequence[Sequence[str]] = PROGRAMS) -> str | None:
    """Copy and say by what; None where nothing here can. A terminal does not answer whether it took the text."""
    for words in programs:
        if (path := shutil.which(words[0])) is not None and _took(path, words[1:], text):
            return words[0]
    if not terminal.isatty():
        return None
    terminal.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")  # OSC 52, of xterm and most since
    terminal.flush()
    return "the terminal (OSC 52), if it allows that"


def _took(path: str, words: Sequence[str], text: str) -> bool:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [path, *words], input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=WAIT_S
        )
        return done.returncode == 0
    return False
