"""An HTTP proxy that makes the faults of a network and of a cloud, by rules that change while others use it."""

import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

HOP_HEADERS = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect", "te", "trailer")


class CloseConnection(Exception):
    """Raised by an action: the proxy closes the connection without an answer."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Request:
    """A request to the proxy. `path` includes the query."""

    proxy: "FaultyProxy"
    method: str
    path: str
    headers: Message
    stream: BinaryIO
    body: bytes | None = None

    def read_body(self, fraction: float = 1.0) -> bytes:
        """Return the body, or the first `fraction` of it where its length is known."""
        if self.body is None and self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self.body = b"".join(iter(self.read_chunk, b""))
        elif self.body is None:
            self.body = self.stream.read(int(int(self.headers.get("Content-Length") or 0) * fraction))
        return self.body

    def read_chunk(self) -> bytes:
        chunk = self.stream.read(int(self.stream.readline().split(b";")[0], 16))
        self.stream.readline()
        return chunk

    def forward(self) -> Answer:
        """Let the server answer."""
        return self.proxy.forward(self)

    def send(self, body: bytes, announced_length: int) -> HTTPConnection:
        connection = HTTPConnection(self.proxy.target, timeout=60)
        connection.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_HEADERS:
                connection.putheader(name, value)
        if body or self.method not in ("GET", "HEAD", "DELETE"):
            connection.putheader("Content-Length", str(announced_length))
        connection.endheaders(body)
        return connection


# What a rule does with a request. None passes the request to the next rule, and after the last to the server.
Action = Callable[[Request], Answer | None]


@dataclass
class Rule:
    """An action for the requests that match, `limit` times, or until the rule is removed."""

    act: Action
    method: str  # a regular expression for the whole method
    pattern: str  # a regular expression that is searched for in path and query
    limit: int | None = None
    count: int = 0  # requests that the action was called for

    def takes(self, request: Request) -> bool:
        if self.limit is not None and self.count >= self.limit:
            return False
        return bool(re.fullmatch(self.method, request.method) and re.search(self.pattern, request.path))


def hold_connection(seconds: float) -> Action:
    """Read the request, answer nothing for `seconds`, then close the connection."""

    def hold(request: Request) -> None:
        request.read_body()
        time.sleep(seconds)
        raise CloseConnection

    return hold


def forward_half(request: Request) -> None:
    """Forward half of the body under a greater length, then close both connections."""
    half = request.read_body(0.5)
    request.send(half, 2 * len(half) + 1).close()
    raise CloseConnection


def lose_answer(request: Request) -> None:
    """Let the server do what is asked, then close the connection without its answer."""
    request.forward()
    raise CloseConnection


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self) -> None:
        request = Request(self.server, self.command, self.path, self.headers, self.rfile)
        try:
            answer = self.server.answer(request)
            request.read_body()  # before an answer, so that the client hears it
        except CloseConnection:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        is_head = self.command == "HEAD"
        for name, value in answer.headers:
            if name.lower() not in HOP_HEADERS or (is_head and name.lower() == "content-length"):
                self.send_header(name, value)
        if not is_head and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(b"" if is_head else answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def log_message(self, *arguments) -> None:
        pass


class FaultyProxy(ThreadingHTTPServer):
    """An HTTP proxy before the server `target` ("host:port"), on a free port of this machine."""

    request_queue_size = 128

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.target, self.url = target, f"http://127.0.0.1:{self.server_port}"
        self.rules: list[Rule] = []
        self.lock = threading.Lock()

    def add_rule(self, act: Action, method: str, pattern: str, limit: int | None = None) -> Rule:
        """Add a rule after the others. The first rule that answers is the last to see the request."""
        rule = Rule(act, method, pattern, limit)
        with self.lock:
            self.rules.append(rule)
        return rule

    def remove_rule(self, rule: Rule) -> None:
        with self.lock:
            self.rules.remove(rule)

    def answer(self, request: Request) -> Answer:
        with self.lock:
            rules = list(self.rules)
        for rule in rules:
            with self.lock:
                if not rule.takes(request):
                    continue
                rule.count += 1
            if (answer := rule.act(request)) is not None:
                return answer
        return self.forward(request)

    def forward(self, request: Request) -> Answer:
        """Send a request to the server and return the server's answer."""
        body = request.read_body()
        with closing(request.send(body, len(body))) as connection:
            response = connection.getresponse()
            return Answer(response.status, response.read(), tuple(response.getheaders()))

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that is gone is no error
            super().handle_error(request, client_address)
