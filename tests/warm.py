"""`swarm` commands that start in a moment: forked from a process that has imported everything.

    LocalSwarm(state, command=warm())     # in the place of `python -m swarm.cli.child_main`

What runs is the same command in a process of its own, with the streams, folder and network namespace of whoever asked;
only imports, five seconds of a processor for each node, are made once. The asker stands for it: it passes signals on,
ends as it ends, and takes it along when it is killed. Two things are not the command's: SIGSTOP, and what is read by
the asker's process id.

A first word with a colon, `module:function`, is a function to call in the place of `swarm`.

Run as a program: `warm.py nursery SOCKET` forks, `warm.py ask SOCKET ARGUMENT...` asks.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NAMESPACES = {"net": 0x40000000, "mnt": 0x00020000}
MOST_WORDS = 1 << 16


@functools.cache
def warm() -> tuple[str, ...]:
    """The words before those of a `swarm` command. The first call starts the nursery, which ends with this process."""
    if sys.platform != "linux":
        return sys.executable, "-m", "swarm.cli.child_main"
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    place, here = f"{folder}/socket", str(Path(__file__).resolve())
    nursery = subprocess.Popen([sys.executable, here, "nursery", place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert nursery.stdin is not None and nursery.stdout is not None
    atexit.register(_end, nursery)
    if nursery.stdout.readline() != b"ready\n":
        raise RuntimeError("the nursery of warm commands did not start")
    nursery.stdout.close()
    return sys.executable, "-I", "-S", here, "ask", place


def _end(nursery: subprocess.Popen[bytes]) -> None:
    """Let go of its stdin, at which it ends with all that it forked."""
    assert nursery.stdin is not None
    nursery.stdin.close()
    try:
        nursery.wait(10)
    except subprocess.TimeoutExpired:
        nursery.kill()


def import_everything() -> None:
    """What commands that enter a swarm import sooner or later."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from tests.ring.nest import movable_clock

    movable_clock()  # before anybody keeps the real one
    import gguf  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import swarm.cli.child_main
    import swarm.cli.generate
    import swarm.cli.join
    import swarm.cli.serve
    import swarm.client.client
    import swarm.node.node
    import swarm.serve.gateway
    import swarm.terminal.progress  # noqa: F401

    torch.set_num_threads(1)  # no thread may be there when a process forks


def ask(place: str, words: list[str]) -> int:
    """Stand for a command: its exit code."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(place)
        opened = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
        asked = json.dumps({"words": words, "folder": os.getcwd(), "env": dict(os.environ)}).encode()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2, *opened]))
        line.sendmsg([len(asked).to_bytes(4, "big")], [rights])
        line.sendall(asked)
        for number in PASSED_ON:  # before now one ends this process, as it would the command
            signal.signal(number, lambda number, frame: line.send(bytes([number])))
        told = line.recv(16)
    code = int(told or b"1")
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def nursery(place: str) -> None:
    """Fork on request until stdin ends; what was forked ends with this process."""
    import_everything()
    door = socket.socket(socket.AF_UNIX)
    door.bind(place)
    door.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    waiting.register(door, selectors.EVENT_READ)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting.register(ended, selectors.EVENT_READ)
    born: dict[int, tuple[int, socket.socket]] = {}
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fd == 0:
                if not os.read(0, 1):
                    return
            elif key.fd == door.fileno():
                line, _ = door.accept()
                pid = fork(line)
                born[line.fileno()] = pid, line
                waiting.register(line, selectors.EVENT_READ)
            elif key.fd == ended:
                os.read(ended, 1 << 10)
                for fd, (pid, line) in list(born.items()):
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        del born[fd]
                        with line, contextlib.suppress(OSError, KeyError):  # unless whoever asked was killed
                            waiting.unregister(line)
                            line.send(str(os.waitstatus_to_exitcode(status)).encode())
            elif key.fd in born:
                pid, line = born[key.fd]
                try:
                    numbers = line.recv(64, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue  # a number that was another's before
                for number in numbers:
                    os.kill(pid, number)
                if not numbers:  # whoever asked was killed
                    os.kill(pid, signal.SIGKILL)
                    waiting.unregister(line)


def fork(line: socket.socket) -> int:
    """Read what is asked and begin it; its process id."""
    size, fds, _, _ = socket.recv_fds(line, 4, 5)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += line.recv(MOST_WORDS)
    order = json.loads(asked)
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        return pid
    code = 99
    try:
        code = run(order["words"], order["folder"], order["env"], fds)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: list[str], folder: str, env: dict[str, str], fds: list[int]) -> int:
    """In the new process: the command itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for fd, (name, kind) in zip(fds[3:], NAMESPACES.items(), strict=True):
        if os.fstat(fd).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino and libc.setns(fd, kind):
            raise OSError(ctypes.get_errno(), "cannot enter the asker's namespaces")
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    module, colon, function = words[0].partition(":")
    if colon:
        getattr(importlib.import_module(module), function)()
        return 0
    sys.argv = ["swarm", *words]
    from swarm.cli.child_main import main

    return main()


if __name__ == "__main__":
    if sys.argv[1] == "nursery":
        nursery(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
