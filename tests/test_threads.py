"""Threads of one process find the numerical libraries ready."""

import subprocess
import sys

HOW = """
import threading, torch
from loraport import threads

calls, sqrt, turn = [], torch.sqrt, threading.Barrier(4)

def counted(x):
    calls.append((x.dtype, threading.current_thread().name))
    return sqrt(x)

def begin():
    turn.wait()
    threads.set_threads_of_torch(1)
    made.append(len(calls))

made, torch.sqrt = [], counted
begun = [threading.Thread(target=begin) for _ in range(4)]
for one in begun:
    one.start()
for one in begun:
    one.join()
with threads.threads_of_torch(1):
    pass
assert {dtype for dtype, _ in calls} == {torch.float32, torch.float64} and len(calls) == 2, calls
assert len({name for _, name in calls}) == 1 and made == [2] * 4, (calls, made)
"""


def test_what_threads_call_side_by_side_was_called_before_by_one_of_them():
    """MKL's first call of a function is not safe beside a second one: bits of the first layers differed by chance."""
    done = subprocess.run([sys.executable, "-c", HOW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
