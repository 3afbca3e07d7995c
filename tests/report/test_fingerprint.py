import os
import socket

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_text
from loopline.report import fingerprint as module
from loopline.report.fingerprint import fingerprint


@pytest.fixture
def run_dir(tmp_path):
    write_json(tmp_path / "run.json", {"recipe": {"name": "x", "seed": 0}, "stages": []})
    return tmp_path


def test_it_stays_while_nothing_changes(run_dir):
    assert fingerprint(run_dir) == fingerprint(run_dir)
    write_text(run_dir / "report.html", "the page itself does not count")
    write_text(run_dir / "index.sqlite", "nor do indexes")
    before = fingerprint(run_dir)
    write_text(run_dir / "index.sqlite", "which are rebuilt")
    assert fingerprint(run_dir) == before


def test_it_changes_with_states_curves_the_process_and_the_code(run_dir, monkeypatch):
    seen = [fingerprint(run_dir)]
    write_json(run_dir / "run.json", {"recipe": {"name": "x", "seed": 0}, "stages": [{"state": "done"}]})
    seen.append(fingerprint(run_dir))
    curve = run_dir / "work" / "sft-abc" / "out" / "log" / "metrics.jsonl"
    write_text(curve, "{}\n")
    seen.append(fingerprint(run_dir))
    write_text(curve, "{}\n{}\n")
    seen.append(fingerprint(run_dir))
    write_json(run_dir / "lease.json", {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": 0})
    seen.append(fingerprint(run_dir))
    monkeypatch.setattr(module, "code_version", lambda: "another")
    seen.append(fingerprint(run_dir))
    assert len(set(seen)) == len(seen)


def test_no_run_no_fingerprint(tmp_path):
    with pytest.raises(UserError, match="There is no run"):
        fingerprint(tmp_path)
