"""What is checked before anything is loaded: a taken port or state folder must not be told of after a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.errors import UsageError
from swarm.cli.common import say
from swarm.cli.loop import run_loop

if TYPE_CHECKING:
    from swarm.base.config import MemberConfig


def check_state(folder: Path) -> None:
    """Raises StateInUse when another process holds the state folder, UsageError when it cannot be written."""
    from swarm.discovery.state_dir import locked

    with locked(folder):
        pass


def check_swarm(config: MemberConfig, quiet: bool = False) -> None:
    """Raises UsageError when there is no swarm to ask. Waits only where this machine knows of none and others may be
    heard on the local network, and says so unless `quiet`."""
    from swarm.discovery.bootstrap import knows_of_a_swarm, require_heard

    if not knows_of_a_swarm(config):
        if config.lan and not quiet:
            say("this machine knows no swarm; listening for one on the local network")
        run_loop(require_heard(config))


def check_node_invite(config: MemberConfig) -> None:
    """Raises InviteError for an invite by which this machine, which no swarm has admitted before, becomes no node."""
    from swarm.mesh.invite import parse_invite_untrusted
    from swarm.mesh.saved import PEERS_FILE

    if config.invite is not None and not (config.state / PEERS_FILE).is_file():
        parse_invite_untrusted(config.invite).require_node()


def check_gpu(number: int | None, option: str) -> None:
    """Raises UsageError when this machine has no such GPU. Loads torch, and only where one is asked for."""
    if number is None:
        return
    from swarm.model.device import choose_device

    try:
        choose_device(number)
    except UsageError as error:
        _, _, why = str(error).partition(": ")
        raise UsageError(f"{option} {number}: {why.removesuffix('; use --cpu')}; leave {option} away") from error


def check_draft(draft: str, model: str | None, gpu: int | None) -> None:
    """Raises UsageError for a drafter that cannot be where or what it is asked to be."""
    if draft in ("none", "suffix"):
        for option, value in (("--draft-model", model), ("--draft-gpu", gpu)):
            if value is not None:
                raise UsageError(f"expected --draft lm or auto with {option}, found --draft {draft}")
    if model is not None and not model:
        raise UsageError("expected a model after --draft-model, found an empty text; leave it away for a fitting one")
    check_gpu(gpu, "--draft-gpu")


def check_node_port(listen: tuple[str, int]) -> None:
    """Raises UsageError when a node cannot listen there; port 0 always can."""
    from swarm.net.channel.sockets import listening_sockets

    for sock in listening_sockets(*listen):
        sock.close()


def check_http_port(host: str, port: int) -> None:
    """Raises UsageError when a gateway cannot listen there."""
    from swarm.serve.sockets import bound_sockets

    for sock in bound_sockets(host, port):
        sock.close()
