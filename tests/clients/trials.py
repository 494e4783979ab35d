"""Tries clients one after the other against a running gateway, for the scripts beside this file."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import traceback
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

Trial = Callable[[str, str], Any]
"""With a gateway's address (`http://host:port/v1`) and its first model: what to say of it; raises if it went wrong."""


def try_all(trials: Mapping[str, Trial], excused: Callable[[str, Exception], str | None] = lambda *_: None) -> None:
    """Try all, or those whose names begin with an argument of the program; the last argument is the gateway's address.

    A name begins with the client's package. Prints a line for each, with its version; ends the program, with 1 when one
    failed. excused: why one that failed counts as left out; None: it failed.
    """
    *wanted, url = (word.rstrip("/") for word in sys.argv[1:])
    with urllib.request.urlopen(f"{url}/models") as told:
        model = json.load(told)["data"][0]["id"]
    failed = 0
    for name, trial in trials.items():
        if wanted and not name.startswith(tuple(wanted)):
            continue
        version = importlib.metadata.version(name.split(" ")[0])
        try:
            print(f"ok      {name} {version}: {trial(url, model)}", flush=True)
        except Exception as error:
            if (why := excused(name, error)) is not None:
                print(f"skipped {name} {version}: {why}", flush=True)
                continue
            failed += 1
            print(f"FAILED  {name} {version}: {error}", flush=True)
            traceback.print_exc(limit=-2)
    sys.exit(1 if failed else 0)
