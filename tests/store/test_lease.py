"""One process per run directory, and nobody is blocked by the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.store import lease as leases
from loopline.store.lease import Lease, is_running

HOLD = """
import sys, time
from pathlib import Path
from loopline.store.lease import Lease, is_running
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A real process that holds the run directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_by_the_name_of_the_first_until_that_dies(tmp_path, holder):
    with (
        pytest.raises(UserError, match=rf"in use by process {holder.pid} on {socket.gethostname()}.*--dir"),
        Lease(tmp_path),
    ):
        pytest.fail("both hold the run directory")
    assert holder.poll() is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lease.json").exists()  # The dead tidy nothing up,
    with Lease(tmp_path):  # and block nobody.
        assert read_json(tmp_path / "lease.json")["pid"] == os.getpid()


def test_an_orderly_end_leaves_no_lease_and_lets_the_next_one_in(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stage broke"), Lease(tmp_path):
            raise RuntimeError("stage broke")
        assert not (tmp_path / "lease.json").exists()


def test_two_leases_in_one_process_exclude_each_other_too(tmp_path):
    with Lease(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), Lease(tmp_path):
        pytest.fail("both hold the run directory")
    with Lease(tmp_path / "other"), Lease(tmp_path):
        pass


def test_another_hosts_fresh_heartbeat_is_respected(tmp_path):
    write_json(tmp_path / "lease.json", {"pid": 12, "host": "elsewhere", "heartbeat": time.time() - 10})
    before = (tmp_path / "lease.json").read_bytes()
    with pytest.raises(UserError, match="process 12 on elsewhere"), Lease(tmp_path):
        pytest.fail("the other host's lease was ignored")
    assert (tmp_path / "lease.json").read_bytes() == before


def test_another_hosts_stale_heartbeat_is_taken_over(tmp_path):
    write_json(
        tmp_path / "lease.json", {"pid": 12, "host": "elsewhere", "heartbeat": time.time() - leases.STALE_AFTER - 1}
    )
    with Lease(tmp_path):
        owner = read_json(tmp_path / "lease.json")
    assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
    assert time.time() - owner["heartbeat"] < 10


def test_a_lease_that_cannot_be_written_is_not_held(tmp_path, monkeypatch):
    def fail(path, value):
        raise UserError("The disk is full", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(leases, "write_json", fail)
        with pytest.raises(UserError, match="full"):
            Lease(tmp_path).__enter__()
    with Lease(tmp_path):
        assert read_json(tmp_path / "lease.json")["pid"] == os.getpid()


def test_heartbeats_are_renewed_and_rationed(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(leases.time, "time", lambda: now)
    with Lease(tmp_path) as lease:
        seen = []
        for _ in range(12):
            now += 1
            lease.beat()
            seen.append(json.loads((tmp_path / "lease.json").read_text())["heartbeat"])
    assert len(set(seen)) == 3  # Twelve seconds, one each five.
    assert now - seen[-1] <= leases.BEAT_EVERY


def test_the_owner_here_counts_by_its_process(tmp_path):
    assert not is_running(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"host": socket.gethostname(), "heartbeat": time.time()}
    write_json(tmp_path / "lease.json", {**owner, "pid": ended.pid})
    assert not is_running(tmp_path)
    write_json(tmp_path / "lease.json", {**owner, "pid": os.getpid()})
    assert is_running(tmp_path)


def test_the_owner_elsewhere_counts_by_its_heartbeat(tmp_path):
    write_json(tmp_path / "lease.json", {"host": "elsewhere", "pid": 1, "heartbeat": time.time()})
    assert is_running(tmp_path)
    write_json(tmp_path / "lease.json", {"host": "elsewhere", "pid": 1, "heartbeat": time.time() - 3600})
    assert not is_running(tmp_path)
