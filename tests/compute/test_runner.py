"""Jobs are real processes: they run, say things, end with a status, and take their children along."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.compute.runner import LocalRunner, Resources


def python(code):
    return [sys.executable, "-S", "-c", code]


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def alive(pid):
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def runner(tmp_path):
    return LocalRunner(tmp_path / "logs")


def test_a_job_is_polled_while_it_runs_and_keeps_its_status_and_output(runner, tmp_path):
    gate = tmp_path / "gate"
    code = (
        "import sys, time, pathlib\nprint('begun', flush=True)\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
        "print('bad', file=sys.stderr)\nsys.exit(7)"
    )
    handle = runner.submit(python(code), Resources())
    wait_until(lambda: "begun" in handle.logs())
    assert handle.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        handle.wait(timeout=0.05)
    gate.touch()
    assert handle.wait(timeout=10) == 7
    assert handle.poll() == 7
    assert handle.logs() == "begun\nbad\n"


def test_threads_and_environment_reach_the_job_and_jobs_do_not_share_logs(runner):
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OWN'])"
    first = runner.submit(python(code), Resources(threads=3, environment={"OWN": "one"}))
    second = runner.submit(python(code), Resources(threads=1, environment={"OWN": "two"}))
    assert (first.wait(10), second.wait(10)) == (0, 0)
    assert (first.logs(), second.logs()) == ("3 one\n", "1 two\n")


def test_cancelling_ends_the_job_and_everything_it_started(runner):
    child = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"print(subprocess.Popen([sys.executable, '-S', '-c', {child!r}]).pid, flush=True)\ntime.sleep(60)"
    )
    handle = runner.submit(python(code), Resources())
    wait_until(lambda: handle.logs().endswith("\n"))
    grandchild = int(handle.logs())
    assert alive(grandchild)
    handle.cancel()
    assert handle.poll() == -15
    wait_until(lambda: not alive(grandchild))
    handle.cancel()  # A second time does no harm.


def test_a_job_that_ignores_the_polite_signal_is_killed_after_the_grace(runner):
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    )
    handle = runner.submit(python(code), Resources())
    wait_until(lambda: "deaf" in handle.logs())
    began = time.monotonic()
    handle.cancel(grace=0.2)
    assert handle.poll() == -9
    assert 0.2 <= time.monotonic() - began < 5


def test_a_job_that_listens_may_tidy_up(runner, tmp_path):
    mark = tmp_path / "tidy"
    code = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *a: (pathlib.Path({str(mark)!r}).touch(), sys.exit(5)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    handle = runner.submit(python(code), Resources())
    wait_until(lambda: "ready" in handle.logs())
    handle.cancel(grace=5)
    assert mark.exists() and handle.poll() == 5


def test_a_cancelled_job_leaves_the_canceller_alone(runner):
    handle = runner.submit(python("import time; time.sleep(60)"), Resources())
    assert os.getpgid(handle.process.pid) != os.getpgid(0)
    handle.cancel()
    assert handle.poll() is not None


def test_what_cannot_be_started_is_refused_by_name(runner, tmp_path):
    with pytest.raises(UserError, match="no program /no/such/program"):
        runner.submit(["/no/such/program"], Resources())
    plain = tmp_path / "notes.txt"
    plain.write_text("x")
    with pytest.raises(UserError, match="notes.txt may not be executed"):
        runner.submit([str(plain)], Resources())
    with pytest.raises(UserError, match="no accelerators.*devices=0"):
        runner.submit(python(""), Resources(devices=1))
