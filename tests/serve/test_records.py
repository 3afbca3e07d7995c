"""The traffic database: many writers, old files, other files."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap

import pytest

from loopline.base.errors import UserError
from loopline.serve.records import Records, database_url


def row(name: str, **changes):
    return {
        "id": name,
        "conversation": "c",
        "model": "m",
        "weights_version": "w",
        "harness_version": "h",
        "params": {},
        "input_messages": [],
        "output_message": {},
        "prompt_token_ids": [1],
        "token_ids": [2],
        "logprobs": [-0.5],
        "finish": "stop",
        "usage": {},
        "latency_ms": 1.0,
        "user_hash": None,
        "consent": True,
        **changes,
    }


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "traffic.sqlite"
    program = textwrap.dedent(
        """
        import sys
        from tests.serve.test_records import row
        from loopline.serve.records import Records
        records = Records.open(sys.argv[1])
        for number in range(40):
            records.add_requests([row(f"{sys.argv[2]}-{number}")])
            records.add_feedback(f"{sys.argv[2]}-{number}", "thumbs", "up")
        print(records.user_hash("someone"))
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    hashes = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    records = Records.open(path)
    assert len(records.requests()) == len(records.feedback()) == 120
    # All of them salt with what the database holds, whoever made it first.
    assert hashes == {records.user_hash("someone")}


def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path):
    path = tmp_path / "traffic.sqlite"
    program = textwrap.dedent(
        """
        import os, sys
        from tests.serve.test_records import row
        from loopline.serve.records import Records
        records = Records.open(sys.argv[1])
        records.add_requests([row("a"), row("b")])
        os.kill(os.getpid(), 9)
        """
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], timeout=60).returncode == -9
    assert [request.id for request in Records.open(path).requests()] == ["a", "b"]


def test_hashes_differ_between_databases_and_hide_the_name(tmp_path):
    one, two = Records.open(tmp_path / "a.sqlite"), Records.open(tmp_path / "b.sqlite")
    assert one.user_hash("x@example.com") == one.user_hash("x@example.com") != two.user_hash("x@example.com")
    assert one.user_hash(None) is None


def test_feedback_on_nothing_and_databases_that_are_none(tmp_path):
    records = Records.open(tmp_path / "traffic.sqlite")
    with pytest.raises(KeyError):
        records.add_feedback("nobody", "thumbs", "up")
    (tmp_path / "notes.txt").write_text("these are not the rows you are looking for, " * 40)
    with pytest.raises(UserError, match="cannot be opened"):
        Records.open(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no traffic database"):
        Records.open(tmp_path / "missing.sqlite", create=False)
    assert not (tmp_path / "missing.sqlite").exists()
    with pytest.raises(UserError, match="driver"):
        Records.open("postgresql+nodriver://localhost/x")


def test_closing_leaves_one_file_in_wal_mode(tmp_path):
    records = Records.open(tmp_path / "traffic.sqlite")
    records.add_requests([row("a")])
    records.close()
    assert [file.name for file in tmp_path.iterdir()] == ["traffic.sqlite"]
    connection = sqlite3.connect(tmp_path / "traffic.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_urls_pass_through_and_paths_become_sqlite(tmp_path):
    assert database_url("postgresql://db/x") == "postgresql://db/x"
    assert database_url(tmp_path / "t.sqlite") == f"sqlite:///{tmp_path}/t.sqlite"
