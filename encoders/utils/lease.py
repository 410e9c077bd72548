"""Lease of a folder in a bucket: one holder, which loses it when it stops renewing it.

The lease is one object, and every write to it is conditional on what was read. No clocks are compared: whoever wants a
lease that another holds watches it, and takes it over if it was not renewed meanwhile. A holder that cannot renew its
lease for as long ends its process, as if it were killed.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from encoders.utils.buckets import find_scheme, open_file_system
from encoders.utils.errors import describe_error

LEASE_FILE = ".lease"
LEASE_SCHEMES = {"gs": "gcs", "s3": "s3"}  # and their drivers of TensorStore
LEASE_SECONDS = 60.0  # without renewal, after which a lease is lost
RENEWALS = 4  # attempts within that time
HELD_SHARE = 0.75  # of that time, after which a holder that could not renew ends: before others may take the lease
FREE_LEASE = {"owner": None, "token": None, "renewed_at": 0.0}  # S3 deletes without a condition, so it is written


def open_key_values(folder: Path) -> Any:
    """Return TensorStore's view of a folder in a bucket: its objects by name, with conditional writes."""
    import tensorstore

    scheme, _, path = str(folder).partition("://")
    bucket, _, path = path.partition("/")
    spec = {"driver": LEASE_SCHEMES[scheme], "bucket": bucket, "path": f"{path}/"}
    if scheme == "s3":  # TensorStore reads fewer settings than s3fs, whose objects the lease is about
        meta = open_file_system(folder).s3.meta
        spec |= {"aws_region": meta.region_name}
        if "amazonaws.com" not in meta.endpoint_url:
            spec |= {"endpoint": meta.endpoint_url}
    return tensorstore.KvStore.open(spec).result()


def is_lockable(folder: str | Path) -> bool:
    return find_scheme(folder) in (None, *LEASE_SCHEMES)


def end_process(reason: str, status: int) -> None:
    print(f"encoders: {reason}: this process ends; the same command resumes", file=sys.stderr, flush=True)
    os._exit(status)


class Lease:
    """Lease of a folder, which `take` gets and a thread renews until `release`.

    `on_lost` is called in that thread, with the reason and the status to end with.
    """

    def __init__(
        self,
        folder: Path,
        owner: str,
        seconds: float | None = None,
        on_lost: Callable[[str, int], None] = end_process,
    ):
        self.folder, self.owner, self.seconds, self.on_lost = folder, owner, seconds or LEASE_SECONDS, on_lost
        self.objects, self.token = open_key_values(folder), secrets.token_hex(8)
        self.generation: bytes | None = None  # of the lease that this object wrote last, while it holds it
        self.held_until = 0.0  # by `time.monotonic`
        self.is_released = threading.Event()
        self.thread = threading.Thread(target=self.keep_renewing, name="lease", daemon=True)

    def take(self, on_watch: Callable[[str], None]) -> bool:
        """Take the lease and return True, or return False if its holder is alive.

        `on_watch` is called with the holder where the lease is watched, for up to its time.
        """
        found = self.read()
        if owner := parse_content(found)["owner"]:
            on_watch(owner)
            deadline = time.monotonic() + self.seconds
            while (now := self.read()).stamp.generation == found.stamp.generation and time.monotonic() < deadline:
                time.sleep(min(1.0, self.seconds / (4 * RENEWALS)))
            if now.stamp.generation != found.stamp.generation and parse_content(now)["owner"]:
                return False
            found = now
        if not self.write_if(found.stamp.generation):
            return False
        self.thread.start()
        return True

    def read(self) -> Any:
        return self.wait_for(self.objects.read(LEASE_FILE))

    def wait_for(self, future: Any) -> Any:
        """Return the result of a request; a holder waits no longer than it surely holds the lease."""
        seconds = self.seconds if self.generation is None else self.held_until - time.monotonic()
        with suppress(TimeoutError):
            if seconds > 0:
                return future.result(timeout=seconds)
        raise ConnectionError(f"{self.folder}: no answer about the lease while it is held")

    def write_if(self, generation: bytes) -> bool:
        """Write the lease if it is still of a generation, and return whether this object holds it then."""
        content = json.dumps({"owner": self.owner, "token": self.token, "renewed_at": time.time()})
        began_at = time.monotonic()
        written = self.wait_for(self.objects.write(LEASE_FILE, content, if_equal=generation))
        written_generation = written.generation
        if not written_generation:  # another's, or ours whose answer was lost on its way
            found = self.read()
            if parse_content(found)["token"] != self.token:
                self.generation = None
                return False
            written_generation = found.stamp.generation
        self.generation, self.held_until = written_generation, began_at + HELD_SHARE * self.seconds
        return True

    def keep_renewing(self) -> None:
        problem = ""
        while not self.is_released.wait(self.seconds / RENEWALS):
            try:
                if time.monotonic() < self.held_until and not self.write_if(self.generation):
                    self.on_lost(f"{self.folder}: another process has taken the lease", 1)
                    return
            except Exception as error:  # TensorStore raises many types
                problem = f" ({describe_error(error)})"
            if time.monotonic() >= self.held_until:
                reason = f"{self.folder}: the lease could not be renewed in time{problem}"
                self.on_lost(reason, os.EX_TEMPFAIL)
                return

    def release(self) -> None:
        """Give the lease back, by a lease of nobody; after a failure it expires by itself."""
        self.is_released.set()
        self.thread.join()
        if self.generation is None:
            return
        try:
            self.wait_for(self.objects.write(LEASE_FILE, json.dumps(FREE_LEASE), if_equal=self.generation))
        except Exception as error:
            print(
                f"{self.folder}: the lease expires in {self.seconds:.0f} s ({describe_error(error)})", file=sys.stderr
            )


def parse_content(found: Any) -> dict:
    """Return owner, token and time of a lease that was read; one that cannot be read is of an unknown process."""
    if found.state != "value":
        return FREE_LEASE
    try:
        return FREE_LEASE | json.loads(found.value)
    except (ValueError, TypeError):
        return FREE_LEASE | {"owner": "an unknown process"}


def read_lease_owner(folder: Path) -> str | None:
    """Return who holds the lease of a folder, or None where nobody has renewed it lately, by both machines' clocks."""
    content = parse_content(open_key_values(folder).read(LEASE_FILE).result(timeout=LEASE_SECONDS))
    return content["owner"] if time.time() - content["renewed_at"] < LEASE_SECONDS else None
