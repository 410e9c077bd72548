"""Several processes, on one machine or on many, as one run: how they join, agree and end.

All refuse what one of them refuses. A fault of one ends all, since the others would wait for it forever.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn, TypeVar

import jax
import numpy as np

from encoders.utils.errors import UserError

T = TypeVar("T")
MAX_ERROR_BYTES = 2000  # of an error message that is sent to the other processes
RETRY_SECONDS = 0.2  # between attempts to connect
REPLY_SECONDS = 5.0  # for an answer on an open connection


class DistributedError(UserError):
    """Processes that cannot form one run, or one of which has refused to."""


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> None:
    """Join the processes of a run, before JAX is used; without arguments as the environment describes them.

    `coordinator` is HOST:PORT of process 0, or "auto" for what `jax.distributed` detects by itself, as on a TPU pod.
    Raises `DistributedError` unless all processes join within `timeout` seconds, where JAX would end the process.
    """
    if coordinator in (None, "auto"):
        if process_id is not None:
            raise DistributedError(f"--process {process_id} needs --coordinator HOST:PORT, the address of process 0")
        if coordinator is None and count_launched_processes() < 2:
            return
        try:
            return jax.distributed.initialize(initialization_timeout=int(timeout))
        except (ValueError, RuntimeError, OSError) as error:
            raise DistributedError(f"jax.distributed finds no processes to join: {error}") from error
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise DistributedError(
            f"--coordinator {coordinator} needs --processes N and --process 0 to N - 1, and has --processes "
            f"{num_processes} and --process {process_id}"
        )
    try:
        wait_for_all_processes(coordinator, num_processes, process_id, timeout)
    except (OSError, ValueError) as error:
        raise DistributedError(f"process {process_id} of {num_processes}: {error}") from error
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=int(timeout))


def count_launched_processes() -> int:
    """Return the number of processes that srun, mpirun or GKE reports to have started."""
    hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    counts = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return max([len(hosts), *(int(count) for count in counts if count.isdigit())])


def is_multi_process() -> bool:
    """Return True where this process is one of several of a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Return True in the process that logs for the run and writes its files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def raise_on_all(work: Callable[[], T]) -> T:
    """Return `work()`; if it fails in one process, raise `DistributedError` with the reason in all of them."""
    if not is_multi_process():
        return work()
    result, failure, message = None, None, ""
    try:
        result = work()
    except Exception as error:
        failure, message = error, str(error) or repr(error)
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
    encoded = np.frombuffer(message.encode()[:MAX_ERROR_BYTES].ljust(MAX_ERROR_BYTES, b"\0"), np.uint8)
    messages = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gather_from_processes(encoded)]
    if failed := [process for process, message in enumerate(messages) if message]:
        prefix = f"process {failed[0]}: " if len(failed) < len(messages) else ""
        raise DistributedError(prefix + messages[failed[0]]) from failure
    return result


def gather_from_processes(array: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes along a new first axis."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array)).reshape(-1, *array.shape)


def broadcast_stop() -> None:
    """Ask all processes to end after a step that they agree on: JAX forwards the SIGTERM of one to the others."""
    signal.raise_signal(signal.SIGTERM)


def stop_requested_at(step: int) -> bool:
    """Return True at the step after which all processes end, once one was asked to; `step` must only increase."""
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return reached_preemption_sync_point(step)


def log_from_host(line: str) -> None:
    """Print a line of this process, primary or not, to the standard error."""
    print(f"process {jax.process_index()}: {line}" if is_multi_process() else line, file=sys.stderr, flush=True)


def abort_all(error: BaseException) -> NoReturn:
    """End this process at once for an error of its own; an orderly end would wait for the other processes."""
    if isinstance(error, ValueError):
        log_from_host(str(error))
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def wait_for_all_processes(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Return in every process once all have joined. Raises `ValueError` or `OSError` within `timeout` s otherwise.

    JAX ends the process where another is missing, so this rendezvous comes first. Process 0 listens at the address that
    `jax.distributed` uses later. Each of the others sends its number, the number of processes and its version of JAX;
    all receive an error message, or none.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator {coordinator!r} must be HOST:PORT")
    deadline = time.monotonic() + timeout
    if process_id == 0:
        problem = serve_rendezvous(int(port), num_processes, deadline, timeout)
    else:
        with connect_to_primary((host.strip("[]"), int(port)), deadline, timeout) as peer:
            # Process 0 reaches the deadline first, and reports who is missing.
            peer.settimeout(max(deadline - time.monotonic(), 0.01) + REPLY_SECONDS)
            send_line(peer, {"process": process_id, "processes": num_processes, "jax": jax.__version__})
            if (reply := read_line(peer, "problem")) is None:
                raise UserError(f"{coordinator} is not answered by a process of this run")
            problem = reply["problem"]
    if problem:
        raise UserError(problem)


def serve_rendezvous(port: int, num_processes: int, deadline: float, timeout: float) -> str | None:
    """Wait, as process 0, for the others, send them an error or none, and return it."""
    peers: dict[int, socket.socket] = {}
    problem = None
    with ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise UserError(f"port {port} cannot be opened: {error.strerror}; choose another one") from None
        while len(peers) < num_processes - 1 and problem is None:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(process) for process in range(1, num_processes) if process not in peers)
                problem = f"after {timeout:.0f} s process {missing} of {num_processes} has not joined at port {port}"
                break
            peer.settimeout(REPLY_SECONDS)
            greeting = read_line(peer, "process")
            if greeting is None or type(process := greeting["process"]) is not int:
                continue  # not a process of a run
            for name, expected in {"processes": num_processes, "jax": jax.__version__}.items():
                if problem is None and greeting.get(name) != expected:
                    problem = f"process {process} has {name} {greeting.get(name)}, and process 0 has {name} {expected}"
            if process in peers:
                problem = f"two processes joined as process {process}"
                send_line(peer, {"problem": problem})
            peers.setdefault(process, peer)
        for peer in peers.values():
            send_line(peer, {"problem": problem})
    return problem


def connect_to_primary(address: tuple[str, int], deadline: float, timeout: float) -> socket.socket:
    """Return a connection to process 0, once it listens."""
    host, port = address
    while True:
        seconds_left = deadline - time.monotonic()
        try:
            return socket.create_connection(address, timeout=max(seconds_left, 0.01))
        except socket.gaierror as error:
            raise UserError(f"host {host!r} is unknown: {error.strerror}") from None
        except OSError as error:
            if seconds_left <= RETRY_SECONDS:
                reason = error.strerror or error
                raise UserError(
                    f"after {timeout:.0f} s nobody answers at {host}:{port}, the address of process 0: {reason}"
                ) from None
            time.sleep(RETRY_SECONDS)


def send_line(peer: socket.socket, message: dict) -> None:
    peer.sendall((json.dumps(message) + "\n").encode())


def read_line(peer: socket.socket, key: str) -> dict | None:
    """Return the message that a peer sends, or None where it sends no JSON object with `key`."""
    try:
        message = json.loads(peer.makefile().readline(10_000))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) and key in message else None
