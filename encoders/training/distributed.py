"""Several processes, on this machine or on many, as one run: how they find each other, and how they agree.

A fault of one process ends them all, since the others would wait for it for ever. What can be refused is refused by
all of them together.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
import numpy as np

from encoders.training.rendezvous import wait_for_all_processes

T = TypeVar("T")
MAX_ERROR_BYTES = 2000  # bytes of an error that the others are told


class DistributedError(ValueError):
    """Processes that cannot work as one run, or one of which has refused to."""


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> None:
    """Make this process one of those of a run, before JAX is used; without arguments, as the environment says.

    `coordinator` is HOST:PORT of process 0, or "auto": what `jax.distributed` finds out by itself, as on a TPU pod.
    They have `wait` seconds to come together. Raises `DistributedError` where that fails, in one line: inside JAX it would
    end the process with a dump of its stack.
    """
    if coordinator in (None, "auto"):
        if process_id is not None:
            raise DistributedError(f"--process {process_id} needs --coordinator HOST:PORT, where process 0 is")
        if coordinator == "auto" or count_launched_processes() > 1:
            try:
                jax.distributed.initialize(initialization_timeout=int(timeout))
            except (ValueError, RuntimeError, OSError) as error:
                raise DistributedError(f"jax.distributed finds no processes to join: {error}") from error
        return
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
    """How many processes srun, mpirun or GKE says that it has started."""
    hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    counts = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return max([len(hosts), *(int(count) for count in counts if count.isdigit())])


def is_multi_process() -> bool:
    """Whether this process is one of several of a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process speaks for the run, and writes what is written once."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def raise_on_all(work: Callable[[], T]) -> T:
    """What `work` returns. Where it fails in one process, it raises `DistributedError` in all, with the reason."""
    if not is_multi_process():
        return work()
    found, failure = None, None
    try:
        found = work()
    except Exception as error:
        failure = error
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
    heard = gather_from_processes(
        np.frombuffer(describe_error(failure).encode()[:MAX_ERROR_BYTES].ljust(MAX_ERROR_BYTES, b"\0"), np.uint8)
    )
    reasons = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in heard]
    if failed := [number for number, reason in enumerate(reasons) if reason]:
        who = f"process {failed[0]}: " if len(failed) < len(reasons) else ""
        raise DistributedError(who + reasons[failed[0]]) from failure
    return found


def describe_error(error: Exception | None) -> str:
    return "" if error is None else str(error) or repr(error)


def primary_first(work: Callable[[], T]) -> T:
    """`agreed`, the primary process before the others, which find what it has made."""
    found = raise_on_all(lambda: work() if is_primary() else None)
    return raise_on_all(lambda: found if is_primary() else work())


def gather_from_processes(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one after the other along a new first axis."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array)).reshape(-1, *array.shape)


def broadcast_stop() -> None:
    """Ask all processes to end after a step that they agree on: JAX tells the others what SIGTERM tells one."""
    signal.raise_signal(signal.SIGTERM)


def stop_requested_at(step: int) -> bool:
    """Whether `step`, which only grows, is the one after which all processes end, since one of them was asked to."""
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return reached_preemption_sync_point(step)


def log_from_host(line: str) -> None:
    """Print a line of this process, whichever it is."""
    print(f"process {jax.process_index()}: {line}" if is_multi_process() else line, file=sys.stderr, flush=True)


def abort_all(error: BaseException) -> NoReturn:
    """End this process at once for an error that the others do not have: to end in order it would wait for them."""
    if isinstance(error, ValueError):
        log_from_host(str(error))
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)
