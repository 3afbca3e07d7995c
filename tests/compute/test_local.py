"""Setting up this machine."""

import pytest
import torch

from loopline.base.errors import UserError
from loopline.compute.local import available_cores, prepare


@pytest.fixture(autouse=True)
def _torch_as_before():
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def test_threads_are_set_as_asked_or_to_every_core():
    assert prepare("cpu", 1) == 1 == torch.get_num_threads()
    assert prepare("cpu", None) == available_cores() == torch.get_num_threads()
    assert torch.are_deterministic_algorithms_enabled()


def test_a_missing_device_is_refused_with_the_key(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="compute.device is cuda.*set compute.device to cpu"):
        prepare("cuda", 1)
