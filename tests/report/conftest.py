from pathlib import Path

import pytest

from loopline.report.data import build_report
from tests.report.synthetic import make_run


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def full_report(full_run: Path) -> dict:
    return build_report(full_run)
