"""Several processes, on one machine or on many, as one run: how they join, agree and end.

All refuse what one of them refuses. A fault of one ends all, since the others would wait for it forever.
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
import numpy as np

from encoders.training.rendezvous import wait_for_all_processes
from encoders.utils.errors import UserError, describe_error, escape_control, is_expected

T = TypeVar("T")
MAX_ERROR_BYTES = 2000  # of an error message that is sent to the other processes
TOKEN_VARIABLE = "ENCODERS_RUN_TOKEN"  # a secret of the processes of a run, instead of their command
LOST_PEER = re.compile("gloo|connection (closed|reset|refused)|coordination|UNAVAILABLE|heartbeat|DEADLINE", re.I)


class DistributedError(UserError):
    """Processes that cannot form one run, or one of which has refused to."""


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float, command: str = ""
) -> None:
    """Join the processes of a run, before JAX is used; without arguments as the environment describes them.

    `coordinator` is HOST:PORT of process 0, or "auto" for what `jax.distributed` detects by itself, as on a TPU pod.
    Process 0 listens at that address alone. It takes the others by `command`, which is the same in all of them, or by
    the secret in `ENCODERS_RUN_TOKEN`; JAX, which takes the port over afterwards, asks for neither.
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
        key = (os.environ.get(TOKEN_VARIABLE) or command).encode()
        wait_for_all_processes(coordinator, num_processes, process_id, timeout, key)
    except (OSError, UserError) as error:
        raise DistributedError(f"process {process_id} of {num_processes}: {describe_error(error)}") from error
    bind_address = {"coordinator_bind_address": coordinator} if process_id == 0 else {}
    jax.distributed.initialize(
        coordinator, num_processes, process_id, initialization_timeout=int(timeout), **bind_address
    )


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
        failure, message = error, describe_error(error)
        if not is_expected(error):
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
    prefix = f"process {jax.process_index()}: " if is_multi_process() else ""
    print(escape_control(prefix + line), file=sys.stderr, flush=True)


def abort_all(error: BaseException, status: int = 1) -> NoReturn:
    """End this process at once for an error of its own; an orderly end would wait for the other processes."""
    if is_expected(error) or status != 1:
        log_from_host(describe_error(error))
    elif isinstance(error, ValueError | jax.errors.JaxRuntimeError) and LOST_PEER.search(str(error)):
        log_from_host("another process of the run has ended, so this one ends; the same command resumes")
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else status)
