"""Stands where llama.cpp's tests start `llama-server`: asks a running `tests.clients.llama` for a gateway with these
options, and holds it until it is ended. The standard library alone: it is started a hundred times."""

from __future__ import annotations

import json
import signal
import socket
import sys


def main(path: str, options: list[str]) -> int:
    """Exit status 1 with the reason where there is no such gateway."""
    with socket.socket(socket.AF_UNIX) as line:
        # Like a real server, it is gone only when its port is free: else the next test would ask this one.
        signal.signal(signal.SIGTERM, lambda *_: line.shutdown(socket.SHUT_WR))
        line.connect(path)
        line.sendall(json.dumps(options).encode() + b"\n")
        answer = line.makefile().readline()
        if answer != "ready\n":
            print(answer, file=sys.stderr)
            return 1
        line.recv(1)  # until one of both ends
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
