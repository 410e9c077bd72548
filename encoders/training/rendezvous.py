"""Do all processes of a run come, as many as were asked for, each once? Asked before JAX, which dies of the answer no.

Process 0 listens where `jax.distributed` will; each of the others says its number, and all hear whether it fits.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import jax

RETRY_SECONDS = 0.2  # seconds between attempts


def wait_for_all_processes(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns in every process once all have come. Raises `ValueError` or `OSError` within `wait` seconds otherwise."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"--coordinator {coordinator!r} must be HOST:PORT")
    until = time.monotonic() + timeout
    if process_id == 0:
        serve_rendezvous(int(port), num_processes, until, timeout)
    else:
        join_rendezvous((host.strip("[]"), int(port)), num_processes, process_id, until, timeout)


def serve_rendezvous(port: int, num_processes: int, deadline: float, timeout: float) -> None:
    """What process 0 does: hear the others, and tell them what is wrong."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise ValueError(f"port {port} cannot be had: {error.strerror}; choose another one") from None
        came: list[int] = []
        peers: list[socket.socket] = []
        problem = None
        while len(came) < num_processes - 1 and problem is None:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer, _ = server.accept()
            except TimeoutError:
                missing = ", ".join(str(number) for number in range(1, num_processes) if number not in came)
                problem = f"after {timeout:.0f} s process {missing} of {num_processes} has not come to port {port}"
                break
            stack.enter_context(peer)
            peer.settimeout(5)
            try:
                theirs = json.loads(peer.makefile().readline(1000))
                number, mine = int(theirs["process"]), {"processes": num_processes, "jax": jax.__version__}
            except (OSError, ValueError, LookupError, TypeError):
                continue  # somebody else
            problem = next(
                (
                    f"process {number} has {name} {theirs.get(name)}, and process 0 has {name} {value}"
                    for name, value in mine.items()
                    if theirs.get(name) != value
                ),
                f"two processes came as process {number}" if number in came else None,
            )
            came.append(number)
            peers.append(peer)
        for peer in peers:
            peer.sendall((json.dumps({"problem": problem}) + "\n").encode())
    if problem:
        raise ValueError(problem)


def join_rendezvous(
    address: tuple[str, int], num_processes: int, process_id: int, deadline: float, timeout: float
) -> None:
    """What the others do: find process 0, and hear from it."""
    place = f"{address[0]}:{address[1]}"
    while True:
        left = deadline - time.monotonic()
        try:
            peer = socket.create_connection(address, timeout=max(left, 0.01))
            break
        except socket.gaierror as error:
            raise ValueError(f"there is no host {address[0]!r}: {error.strerror}") from None
        except OSError as error:
            if left <= RETRY_SECONDS:
                reason = error.strerror or error
                raise ValueError(
                    f"after {timeout:.0f} s nobody answers at {place}, where process 0 is: {reason}"
                ) from None
            time.sleep(RETRY_SECONDS)
    with peer:
        peer.settimeout(max(deadline - time.monotonic(), 0.01) + 5)  # process 0 notices first who is missing
        peer.sendall(
            (json.dumps({"process": process_id, "processes": num_processes, "jax": jax.__version__}) + "\n").encode()
        )
        try:
            problem = json.loads(peer.makefile().readline(10_000))["problem"]
        except (OSError, ValueError, LookupError, TypeError):
            raise ValueError(f"what answers at {place} is no process of this run") from None
    if problem:
        raise ValueError(problem)
