"""A thread's own number of threads, and nobody else's."""

from concurrent.futures import ThreadPoolExecutor

import torch

from loopline.compute.threads import can_own_threads, own_threads


def test_threads_are_set_for_the_block_alone():
    before = torch.get_num_threads()
    with own_threads(1):
        assert torch.get_num_threads() == 1 or before == 1
        torch.ones(300, 300) @ torch.ones(300, 300)
    assert torch.get_num_threads() == before
    with own_threads(None):
        assert torch.get_num_threads() == before


def test_other_threads_keep_theirs():
    before = torch.get_num_threads()

    def inside():
        with own_threads(1):
            torch.ones(300, 300) @ torch.ones(300, 300)
            return torch.get_num_threads(), pool_two.submit(torch.get_num_threads).result()

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as pool_two:
        own, other = pool.submit(inside).result()
    assert torch.get_num_threads() == before
    if can_own_threads():
        assert own == 1 and other == before
