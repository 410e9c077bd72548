"""The notice of Google Compute Engine that a machine is about to be taken away, read from its metadata server."""

from __future__ import annotations

import os
import threading
import urllib.request
from pathlib import Path

HOST_VARIABLE = "GCE_METADATA_HOST"  # as Google's libraries call it
POLL_SECONDS, ANSWER_SECONDS = 5.0, 3.0
# The keys of https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys, and what they say beforehand.
NOTICES = {
    "instance/preempted": ("TRUE", "preemption of this machine"),
    "instance/maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE", "maintenance that ends this machine"),
}


class PreemptionNotice:
    """A thread that asks the metadata server until it says that this machine ends; `reason` is why, or None."""

    def __init__(self, poll_seconds: float = POLL_SECONDS):
        self.poll_seconds, self.reason = poll_seconds, None
        self.is_stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="preemption notice", daemon=True)

    def start(self) -> None:
        """Start the thread on a machine of Compute Engine; elsewhere do nothing."""
        if find_metadata_host():
            self.thread.start()

    def stop(self) -> None:
        self.is_stopped.set()
        if self.thread.is_alive():
            self.thread.join()

    def watch(self) -> None:
        while self.reason is None and not self.is_stopped.wait(self.poll_seconds):
            self.reason = find_notice()


def find_metadata_host() -> str | None:
    """Return the metadata server of a machine of Compute Engine, or None elsewhere."""
    if host := os.environ.get(HOST_VARIABLE):
        return host
    product = Path("/sys/class/dmi/id/product_name")
    is_google = product.exists() and product.read_text(encoding="utf-8").startswith("Google")
    return "metadata.google.internal" if is_google else None


def find_notice() -> str | None:
    """Return why the machine is about to end, or None, also where the server does not answer."""
    host = find_metadata_host()
    for key, (value, reason) in NOTICES.items():
        url = f"http://{host}/computeMetadata/v1/{key}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                answer = response.read(1000).decode(errors="replace").strip()
        except OSError:
            continue
        if answer == value:
            return reason
    return None
