import json
import os
import threading
import time

import pytest
import tensorstore

from encoders.utils import lease as lease_module
from encoders.utils.lease import FREE_LEASE, LEASE_FILE, Lease, read_lease_owner

SECONDS = 2.0  # longer than a busy machine leaves a thread waiting


@pytest.fixture(autouse=True)
def leases_on_disk(monkeypatch):
    """Keep leases in folders of this machine."""
    open_folder = lambda folder: tensorstore.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    monkeypatch.setattr(lease_module, "open_key_values", open_folder)


@pytest.fixture
def make_lease(tmp_path):
    leases = []

    def make(owner: str) -> Lease:
        lost = []
        lease = Lease(tmp_path, owner, SECONDS, on_lost=lambda *told: lost.append(told))
        lease.lost = lost
        leases.append(lease)
        return lease

    yield make
    for lease in leases:
        lease.is_released.set()


def test_a_lease_is_held_by_one_and_free_after_its_release(make_lease, tmp_path):
    first, second, watched = make_lease("first"), make_lease("second"), []
    assert first.take(watched.append) and read_lease_owner(tmp_path) == "first"
    assert not second.take(watched.append)
    assert watched == ["first"] and not first.lost
    first.release()
    assert read_lease_owner(tmp_path) is None
    assert second.take(watched.append) and watched == ["first"]
    second.release()


def test_a_holder_that_does_not_renew_loses_its_lease_and_is_told(make_lease, tmp_path):
    dead, heir, watched = make_lease("dead"), make_lease("heir"), []
    paused = threading.Event()
    assert dead.take(watched.append)
    write_if = dead.write_if
    dead.write_if = lambda generation: paused.wait() and write_if(generation)
    began_at = time.monotonic()
    assert heir.take(watched.append) and time.monotonic() - began_at >= SECONDS
    assert watched == ["dead"] and read_lease_owner(tmp_path) == "heir"
    paused.set()
    dead.thread.join(5)
    assert [status for _, status in dead.lost] == [os.EX_TEMPFAIL] and not heir.lost  # by its own clock
    dead.release()  # does not remove the lease of another
    assert read_lease_owner(tmp_path) == "heir"
    heir.release()


def test_a_holder_whose_lease_was_written_by_another_ends_and_does_not_take_it_back(make_lease, tmp_path):
    lease = make_lease("first")
    assert lease.take(pytest.fail)
    lease.objects.write(LEASE_FILE, json.dumps(FREE_LEASE | {"owner": "another", "renewed_at": time.time()})).result()
    lease.thread.join(5)
    assert [status for _, status in lease.lost] == [1]
    lease.release()
    assert read_lease_owner(tmp_path) == "another"


def test_a_holder_that_cannot_renew_ends_when_its_time_is_over(make_lease):
    lease = make_lease("alone")
    assert lease.take(pytest.fail)
    began_at = time.monotonic()
    lease.objects = BrokenObjects()
    lease.thread.join(10)
    assert "no network" in lease.lost[0][0] and lease.lost[0][1] == os.EX_TEMPFAIL
    assert SECONDS / 4 < time.monotonic() - began_at < SECONDS  # before another may take it


def test_a_write_whose_answer_was_lost_keeps_the_lease(make_lease):
    lease = make_lease("first")
    assert lease.take(pytest.fail)
    stale = lease.generation
    assert lease.write_if(lease.generation) and lease.generation != stale
    assert lease.write_if(stale) and lease.generation not in (b"", stale)
    lease.release()


def test_of_many_that_ask_at_once_one_gets_the_lease(make_lease):
    leases, results = [make_lease(str(number)) for number in range(8)], []
    threads = [
        threading.Thread(target=lambda lease=lease: results.append(lease.take(lambda _: None))) for lease in leases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 1


class BrokenObjects:
    def read(self, *arguments):
        raise ValueError("no network")

    def write(self, *arguments, **options):
        raise ValueError("no network")
