"""Lines where there is no terminal, a bar where there is one, and never anything on standard output."""

import os
import pty
import re
import subprocess
import sys

import pytest

from loopline.store import progress
from loopline.store.progress import show_progress

WORK = """
import time
from loopline.store.progress import show_progress
with show_progress("counting", 4, lambda: None) as bar:
    for _ in range(4):
        bar.note("loss 0.5")
        bar.advance()
        time.sleep(0.06)
"""


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_without_a_terminal_a_line_comes_every_fifteen_seconds_with_the_time_left(capfd, clock):
    with show_progress("training", 100, lambda: None) as bar:
        for step in range(100):
            clock.now += 1
            bar.note(f"loss {step}")
            bar.advance()
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 100 // 15
    assert re.fullmatch(r"\s*training: 15%, about 85 s left\s+loss 14", lines[0])
    assert re.fullmatch(r"\s*training: 90%, about 10 s left\s+loss 89", lines[-1])


def test_resumed_work_and_empty_work_show_no_nonsense(capfd, clock):
    with show_progress("nothing", 0, lambda: None) as bar:
        clock.now += 20
        bar.advance(0)
    with show_progress("resumed", 10, lambda: None) as bar:
        bar.advance(9)
        clock.now += 20
        bar.advance()
    assert re.fullmatch(r"\s*resumed: 100%, about 0 s left\s*", capfd.readouterr().err.strip("\n"))


def test_the_first_unit_alone_gives_no_estimate(capfd, clock):
    with show_progress("evaluating", 300, lambda: None) as bar:
        for _ in range(20):
            clock.now += 16 if bar.done == 0 else 1
            bar.advance()
    lines = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"\s*evaluating: 0%\s*", lines[0])
    assert re.fullmatch(r"\s*evaluating: 5%, about \d+ s left\s*", lines[1])


def test_every_advance_ticks(clock):
    ticks = []
    with show_progress("x", 3, lambda: ticks.append(1)) as bar:
        for _ in range(3):
            bar.advance()
    assert len(ticks) == 3


def test_on_a_terminal_a_bar_with_a_count_is_drawn():
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.run(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=follower, env=environment, timeout=20
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux reports the end of a terminal so.
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 0 and process.stdout == b""
    assert "counting" in text and "4/4" in text and "loss 0.5" in text
