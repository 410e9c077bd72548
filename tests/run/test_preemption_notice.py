"""Notices of a metadata server, here on this machine, that a machine is about to be taken away."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from encoders.run.preemption import StopRequest
from encoders.run.preemption_notice import HOST_VARIABLE, PreemptionNotice, find_metadata_host, find_notice


@pytest.fixture
def server(monkeypatch):
    """Serve the answers of a metadata server, which a test may change."""
    answers = {
        "/computeMetadata/v1/instance/preempted": "FALSE",
        "/computeMetadata/v1/instance/maintenance-event": "NONE",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = self.headers["Metadata-Flavor"] == "Google" and self.path in answers
            self.send_response(200 if is_known else 403)
            self.end_headers()
            self.wfile.write(answers.get(self.path, "").encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        monkeypatch.setenv(HOST_VARIABLE, f"127.0.0.1:{http_server.server_port}")
        yield answers
        http_server.shutdown()


@pytest.mark.parametrize(
    "key, answer, reason",
    [
        ("preempted", "FALSE", None),
        ("preempted", "TRUE", "preemption of this machine"),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", None),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", "maintenance that ends this machine"),
    ],
)
def test_a_notice_is_read_from_its_key(key, answer, reason, server):
    server[f"/computeMetadata/v1/instance/{key}"] = answer
    assert find_notice() == reason


def test_a_server_that_does_not_answer_gives_no_notice(monkeypatch):
    monkeypatch.setenv(HOST_VARIABLE, "127.0.0.1:9")
    assert find_notice() is None


def test_a_preempted_machine_stops_the_run_after_a_step(server):
    with StopRequest() as stop:
        stop.notice.stop()
        stop.notice = PreemptionNotice(poll_seconds=0.01)
        stop.notice.start()
        assert stop.poll_reason() is None
        server["/computeMetadata/v1/instance/preempted"] = "TRUE"
        stop.notice.thread.join(timeout=10)
        assert stop.poll_reason() == "preemption of this machine"


def test_elsewhere_nothing_is_asked(monkeypatch):
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    if find_metadata_host() is None:
        with StopRequest() as stop:
            assert not stop.notice.thread.is_alive()
    monkeypatch.setenv(HOST_VARIABLE, "127.0.0.1:9")
    with StopRequest() as stop:
        assert stop.notice.thread.is_alive()
        started_at = time.monotonic()
    assert not stop.notice.thread.is_alive() and time.monotonic() - started_at < 5
