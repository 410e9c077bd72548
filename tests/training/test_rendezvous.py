"""The port where processes meet: whoever does not know the run changes nothing."""

import json
import socket
import threading
from contextlib import ExitStack

import jax
import pytest

from encoders.training import rendezvous
from encoders.training.rendezvous import open_server, read_message, send_message, wait_for_all_processes
from encoders.utils.errors import UserError
from tests.training.test_distributed import port

KEY = b"of the run"
GREETING = {"process": 1, "processes": 2, "jax": jax.__version__}


def meet(places, at: int, keys=None, timeout: float = 20.0) -> list[threading.Thread]:
    """Start the processes of `places`, (process, number of processes); their errors are in `thread.problems`."""

    def join(thread_index: int, process: int, num_processes: int) -> None:
        try:
            wait_for_all_processes(
                f"127.0.0.1:{at}", num_processes, process, timeout, (keys or [KEY] * 9)[thread_index]
            )
            problems[thread_index] = ""
        except UserError as error:
            problems[thread_index] = str(error)

    problems = [None] * len(places)
    threads = [threading.Thread(target=join, args=(index, *place)) for index, place in enumerate(places)]
    for thread in threads:
        thread.problems = problems
        thread.start()
    return threads


def finish(threads) -> list[str]:
    for thread in threads:
        thread.join(30)
    return threads[0].problems


def connect(at: int) -> socket.socket:
    return rendezvous.connect_to_primary(("127.0.0.1", at), rendezvous.time.monotonic() + 10, 10)


def sign(message: dict, key: bytes = KEY) -> bytes:
    return json.dumps(message | {"mac": rendezvous.compute_mac(message, key)}).encode() + b"\n"


JUNK = {  # what a connection sends, given the number that it was sent
    "nothing, and ends": lambda nonce: b"",
    "a line end": lambda nonce: b"\n",
    "zeros": lambda nonce: bytes(300),
    "HTTP": lambda nonce: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": lambda nonce: bytes.fromhex("16030100c8010000c40303") + bytes(100),
    "SSH": lambda nonce: b"SSH-2.0-OpenSSH\r\n",
    "half of JSON": lambda nonce: b'{"process": 1\n',
    "a list": lambda nonce: b"[1]\n",
    "null": lambda nonce: b"null\n",
    "a number": lambda nonce: b"3\n",
    "not UTF-8": lambda nonce: b"\xff\xfe\n",
    "deep": lambda nonce: b"[" * 3000 + b"\n",
    "long": lambda nonce: b"x" * 100_000,
    "a huge number": lambda nonce: b'{"process": 1' + b"0" * 3000 + b"}\n",
    "unsigned": lambda nonce: json.dumps(GREETING | {"nonce": nonce}).encode() + b"\n",
    "signed with another key": lambda nonce: sign(GREETING | {"nonce": nonce}, b"another"),
    "signed for another connection": lambda nonce: sign(GREETING | {"nonce": "0" * 32}),
    "a list in an object": lambda nonce: sign(GREETING | {"nonce": nonce, "more": [1]}),
    "process 0": lambda nonce: sign(GREETING | {"nonce": nonce, "process": 0}),
    "process 99": lambda nonce: sign(GREETING | {"nonce": nonce, "process": 99}),
    "process true": lambda nonce: sign(GREETING | {"nonce": nonce, "process": True}),
    "a mac that is a number": lambda nonce: json.dumps(GREETING | {"nonce": nonce, "mac": 3}).encode() + b"\n",
}


def test_junk_and_silent_strangers_change_nothing():
    at = port()
    primary = meet([(0, 2)], at)
    with ExitStack() as silent:
        for _ in range(4):
            silent.enter_context(connect(at))
        for content in JUNK.values():
            with connect(at) as stranger:
                nonce = read_message(stranger, rendezvous.time.monotonic() + 10)["nonce"]
                stranger.sendall(content(nonce))
        assert primary[0].is_alive()
        assert finish(meet([(1, 2)], at)) == [""] and finish(primary) == [""]


def test_more_strangers_than_there_is_room_for_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(rendezvous, "MAX_STRANGERS", 3)
    at = port()
    primary = meet([(0, 2)], at)
    with ExitStack() as silent:
        first, *_ = [silent.enter_context(connect(at)) for _ in range(8)]
        first.settimeout(10)
        while first.recv(1000):  # until it is dropped
            pass
        assert finish(meet([(1, 2)], at)) == [""] and finish(primary) == [""]


def test_a_stranger_that_says_too_little_in_its_time_is_dropped(monkeypatch):
    monkeypatch.setattr(rendezvous, "REPLY_SECONDS", 0.3)
    at = port()
    primary = meet([(0, 2)], at)
    with connect(at) as stranger:
        stranger.sendall(b"{")
        stranger.settimeout(10)
        while stranger.recv(1000):
            pass
    assert finish(meet([(1, 2)], at)) == [""] and finish(primary) == [""]


def test_processes_of_another_command_are_not_taken_and_counted():
    at = port()
    first, other = finish(meet([(0, 2), (1, 2)], at, keys=[b"one", b"another"], timeout=1.5))
    assert "process 1 of 2" in first and "1 connections" in first and f"port {at}" in first
    assert f"127.0.0.1:{at}" in other and "ENCODERS_RUN_TOKEN" in other


def test_a_process_that_ended_before_all_had_joined_may_join_again():
    at = port()
    primary = meet([(0, 3)], at)
    with connect(at) as early:
        nonce = read_message(early, rendezvous.time.monotonic() + 10)["nonce"]
        send_message(early, GREETING | {"processes": 3, "nonce": nonce}, KEY)
    assert finish(meet([(1, 3), (2, 3)], at)) == ["", ""] and finish(primary) == [""]


def test_a_server_listens_at_its_address_alone():
    at = port()
    with open_server(("127.0.0.1", at)) as server:
        assert server.getsockname() == ("127.0.0.1", at)
        with pytest.raises(UserError, match=f"127.0.0.1 port {at}"):
            open_server(("127.0.0.1", at))
    with pytest.raises(UserError, match="no-such-host.invalid"):
        open_server(("no-such-host.invalid", at))
