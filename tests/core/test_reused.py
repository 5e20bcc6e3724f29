"""Memory that is lent out again."""

import gc
import threading

import torch

from loraport.core.reused import ReusedMemory

MANY = 3 << 20


def test_memory_comes_back_when_the_last_view_of_it_is_gone():
    memory = ReusedMemory()
    lent = memory.take(MANY)
    where, view = lent.data_ptr(), lent[64 : 64 + 4096].view(torch.float32)
    del lent
    other = memory.take(MANY)  # not what is still looked at
    assert other.data_ptr() != where
    assert memory.idle_bytes == 0
    del view
    assert memory.idle_bytes == MANY
    assert memory.take(MANY - 1000).data_ptr() == where


def test_nothing_is_held_beside_what_it_cannot_serve():
    memory = ReusedMemory()
    del [memory.take(MANY) for _ in range(3)][:]
    gc.collect()
    assert memory.idle_bytes == 3 * MANY
    few = memory.take(1000)  # small things are no business of it
    assert memory.idle_bytes == 3 * MANY
    much = memory.take(2 * MANY)
    assert memory.idle_bytes == 0
    assert (len(few), len(much)) == (1000, 2 * MANY)


def test_two_threads_are_never_lent_the_same_memory():
    memory, wrong = ReusedMemory(), []

    def work(mark: int) -> None:
        for _ in range(12):
            lent = memory.take(MANY)
            lent.fill_(mark)
            if not bool((lent == mark).all()):
                wrong.append(mark)
            del lent

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
