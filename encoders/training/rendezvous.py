"""The port where the processes of a run meet, before JAX uses it: strangers may call, and change nothing."""

import hashlib
import hmac
import json
import secrets
import selectors
import socket
import time
from contextlib import ExitStack, suppress

import jax

from encoders.utils.errors import UserError

RETRY_SECONDS = 0.2  # between attempts to connect
REPLY_SECONDS = 5.0  # for a whole message on an open connection
MAX_MESSAGE_BYTES = 4000
MAX_STRANGERS = 64  # open connections without a signed message yet


def wait_for_all_processes(
    coordinator: str, num_processes: int, process_id: int, timeout: float, key: bytes = b""
) -> None:
    """Return in every process once all have joined. Raises `UserError` or `OSError` within `timeout` s otherwise.

    JAX ends the process where another is missing, so this rendezvous comes first. Process 0 listens at `coordinator`,
    the address that `jax.distributed` uses later, and sends each connection a number that occurs once. The others
    answer with their number, the number of processes and their version of JAX; all receive an error message, or none.
    Messages of both sides are signed with `key`. Unsigned messages are dropped, and change nothing.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator {coordinator!r} must be HOST:PORT")
    address, deadline = (host.strip("[]"), int(port)), time.monotonic() + timeout
    if process_id == 0:
        problem = Rendezvous(key, num_processes).wait_for_peers(address, deadline, timeout)
    else:
        with connect_to_primary(address, deadline, timeout) as primary:
            nonce = (read_message(primary, time.monotonic() + REPLY_SECONDS) or {}).get("nonce")
            greeting = {"process": process_id, "processes": num_processes, "jax": jax.__version__, "nonce": nonce}
            send_message(primary, greeting, key)
            # Process 0 reaches the deadline first, and reports who is missing.
            reply = read_message(primary, deadline + REPLY_SECONDS)
        if nonce is None or reply is None or not is_signed(reply, key) or reply.get("nonce") != nonce:
            remedy = "all processes need the same command and, where it is set, the same ENCODERS_RUN_TOKEN"
            raise UserError(f"{coordinator} is not answered by a process of this run; {remedy}")
        problem = reply.get("problem")
    if problem:
        raise UserError(problem)


class Rendezvous:
    """Process 0 of a run while it waits for the others, among any number of strangers."""

    def __init__(self, key: bytes, num_processes: int):
        self.key, self.num_processes = key, num_processes
        self.selector = selectors.DefaultSelector()
        self.strangers: dict[socket.socket, tuple[str, float, bytearray]] = {}  # nonce, deadline, bytes so far
        self.peers: dict[int, tuple[socket.socket, str]] = {}  # by process, with the nonce
        self.problem: str | None = None
        self.num_refused = 0

    def wait_for_peers(self, address: tuple[str, int], deadline: float, timeout: float) -> str | None:
        """Wait until all have joined, send them an error or none, and return it."""
        with ExitStack() as stack:
            server = stack.enter_context(open_server(address))
            stack.callback(self.close_all)
            server.setblocking(False)
            self.selector.register(server, selectors.EVENT_READ)
            while len(self.peers) < self.num_processes - 1 and self.problem is None:
                now = time.monotonic()
                if now >= deadline:
                    self.problem = self.describe_missing(address, timeout)
                    break
                for key, _ in self.selector.select(min(deadline - now, RETRY_SECONDS)):
                    self.accept_stranger(server) if key.fileobj is server else self.receive_bytes(key.fileobj)
                for stranger, (_, stranger_deadline, _) in list(self.strangers.items()):
                    if time.monotonic() >= stranger_deadline:
                        self.drop_connection(stranger)
            for peer, nonce in self.peers.values():
                with suppress(OSError):  # it has ended
                    peer.settimeout(REPLY_SECONDS)
                    send_message(peer, {"problem": self.problem, "nonce": nonce}, self.key)
        return self.problem

    def describe_missing(self, address: tuple[str, int], timeout: float) -> str:
        missing = ", ".join(str(process) for process in range(1, self.num_processes) if process not in self.peers)
        refused = f"; {self.num_refused} connections were of another command or token" if self.num_refused else ""
        place = f"at {address[0]} port {address[1]}"
        return f"after {timeout:.0f} s process {missing} of {self.num_processes} has not joined {place}{refused}"

    def accept_stranger(self, server: socket.socket) -> None:
        with suppress(OSError):  # gone again, or no descriptor is left for it
            stranger, _ = server.accept()
            if len(self.strangers) >= MAX_STRANGERS:
                self.drop_connection(next(iter(self.strangers)))
            nonce = secrets.token_hex(16)
            stranger.setblocking(False)
            self.strangers[stranger] = nonce, time.monotonic() + REPLY_SECONDS, bytearray()
            self.selector.register(stranger, selectors.EVENT_READ)
            send_message(stranger, {"nonce": nonce}, self.key)

    def receive_bytes(self, connection: socket.socket) -> None:
        """Take what a connection sends: a peer ends, or a stranger shows with a whole message that it is a peer."""
        try:
            received = connection.recv(MAX_MESSAGE_BYTES)
        except OSError:
            received = b""
        if connection not in self.strangers:  # a peer, which has nothing more to say
            self.peers = {process: peer for process, peer in self.peers.items() if peer[0] is not connection}
            self.drop_connection(connection)
            return
        nonce, _, message_bytes = self.strangers[connection]
        message_bytes += received
        if received and b"\n" not in message_bytes and len(message_bytes) <= MAX_MESSAGE_BYTES:
            return
        message = parse_message(bytes(message_bytes))
        if message is None or not is_signed(message, self.key) or message.get("nonce") != nonce:
            self.num_refused += message is not None
            self.drop_connection(connection)
            return
        del self.strangers[connection]
        self.add_peer(connection, nonce, message)

    def add_peer(self, connection: socket.socket, nonce: str, greeting: dict) -> None:
        """Take a process of the run, unless it does not fit the others."""
        process = greeting.get("process")
        for name, expected in {"processes": self.num_processes, "jax": jax.__version__}.items():
            if self.problem is None and greeting.get(name) != expected:
                has = f"process {process} has {name} {greeting.get(name)}"
                self.problem = f"{has}, and process 0 has {name} {expected}"
        is_number = type(process) is int and 0 < process < self.num_processes
        if not is_number and self.problem is None:
            self.drop_connection(connection)
        elif process in self.peers:
            self.problem = f"two processes joined as process {process}"
            send_message(connection, {"problem": self.problem, "nonce": nonce}, self.key)
            self.drop_connection(connection)
        else:
            self.peers[process] = connection, nonce

    def drop_connection(self, connection: socket.socket) -> None:
        self.strangers.pop(connection, None)
        self.selector.unregister(connection)
        connection.close()

    def close_all(self) -> None:
        for connection in [*self.strangers, *(peer for peer, _ in self.peers.values())]:
            self.drop_connection(connection)
        self.selector.close()


def open_server(address: tuple[str, int]) -> socket.socket:
    """Return a socket that listens at an address of this machine. Raises `UserError` where it cannot."""
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(address, family=family)
    except OSError as error:
        host, port = address
        remedy = "choose another port, and as host an address of the machine of process 0"
        raise UserError(f"{host} port {port} cannot be opened: {error.strerror}; {remedy}") from None


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


def send_message(connection: socket.socket, message: dict, key: bytes) -> None:
    connection.sendall((json.dumps(message | {"mac": compute_mac(message, key)}) + "\n").encode())


def compute_mac(message: dict, key: bytes) -> str:
    return hmac.new(key, json.dumps(message, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def is_signed(message: dict, key: bytes) -> bool:
    """Return whether a message was sent by one who has the key."""
    content = {name: value for name, value in message.items() if name != "mac"}
    return hmac.compare_digest(str(message.get("mac")).encode(), compute_mac(content, key).encode())


def read_message(connection: socket.socket, deadline: float) -> dict | None:
    """Return the message that arrives before the deadline, or None."""
    received = b""
    with suppress(OSError):
        while b"\n" not in received and len(received) <= MAX_MESSAGE_BYTES:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            if not (more := connection.recv(MAX_MESSAGE_BYTES)):
                break
            received += more
    return parse_message(received)


def parse_message(received: bytes) -> dict | None:
    """Return a message: a line with a JSON object of texts and numbers, or None for anything else."""
    try:
        message = json.loads(received)
    except (ValueError, RecursionError):
        return None
    is_flat = isinstance(message, dict) and all(isinstance(x, str | int | None) for x in message.values())
    return message if is_flat and len(received) <= MAX_MESSAGE_BYTES else None
