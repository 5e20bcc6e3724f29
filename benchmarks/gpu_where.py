"""Where the time of a card goes: single steps of a layer, and the share of time in which the card computes."""

import time
import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_correct import transfer
from gpu_session import Session, busy_share, costliest
from gpu_speed import all_but
from loraport.containers.tensors import open_tensors, read_float_with_digest
from loraport.store.store import Store
from steps import steps


def where(session: Session) -> None:
    """Milliseconds of each step of single layers, and the share of time in which the card computes."""
    size = session.size("14B")
    for m, n in ((size.width, size.width), (size.ffn, size.width)):
        session.step(f"steps of {m} x {n}", lambda: _steps(session, (m, n)), 30)  # noqa: B023
    session.step("files of a layer", lambda: _files(session), 20)
    for name, settings in (("first", {}), ("matched-gain", {"method": "matched-gain"})):
        session.step(f"busy, {name}", lambda: _busy(session, name, **settings), 40)  # noqa: B023
    cache = session.work / "cache"
    if cache.is_dir():
        session.step("busy, further", lambda: _busy(session, "further", lora=2, cache=str(cache)), 30)
    for name, settings in (("first", {}), ("further", {"cache": str(cache)}), ("direct", {"method": "direct"})):
        if session.traces is not None and (name != "further" or cache.is_dir()):
            session.step(f"trace, {name}", lambda: _trace(session, name, **settings), 60)  # noqa: B023


def _steps(session: Session, shape: tuple[int, int]) -> dict[str, float]:
    found = {}
    for step in steps(shape, 32, session.device):
        label = f"{step.method}: {step.name}"
        found[label] = session.seconds(step.work, repeat=2, warm=1)
        found[f"{label}, waits"] = waits = _waits(session, step.work)
        told = f", the program waits {waits} times" if session.cuda else ""
        session.say(f"   {shape[0]} x {shape[1]}  {label}: {found[label] * 1e3:.1f} ms{told}")
    session.release()
    return found


def _waits(session: Session, work: Callable[[], object]) -> int:
    """How often the program waits for the card, as torch sees it: what libraries wait for is not in it."""
    if not session.cuda:
        return 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in told)


def _files(session: Session) -> dict[str, float]:
    """What a square layer takes beside the computing, one after the other, in one thread."""
    pair = session.pair("14B", session.blocks)
    (refs,) = open_tensors(pair.source).groups.values()
    ref = next(ref for key, ref in refs.items() if key.endswith("self_attn.q.weight"))
    weight, _ = read_float_with_digest(ref)
    on_device = weight.to(session.device)
    square = {"U": on_device, "Vh": on_device.clone()}
    store, keys = Store(session.work / "store"), iter(f"{number:064x}" for number in range(9))
    found = {
        "read, hash, float32": session.seconds(lambda: read_float_with_digest(ref), 2, 1),
        "to the device": session.seconds(lambda: weight.to(session.device, copy=True), 3, 1),
        "a basis into the cache": session.seconds(lambda: store.put("basis", next(keys), square), 2),
        "and back": session.seconds(lambda: _fetched(store, f"{0:064x}", session.device), 2),
    }
    session.say("   " + "  ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in found.items()))
    return found


def _fetched(store: Store, key: str, device: str) -> None:
    entry = store.get("basis", key)
    assert entry is not None
    for tensor in entry.values():
        tensor.to(device)


def _busy(session: Session, name: str, **settings: object) -> dict[str, float]:
    kind = ProfilerActivity.CUDA if session.cuda else ProfilerActivity.CPU
    transfer(session, "14B", session.blocks, "out", drop=all_but("self_attn.q"))  # what is loaded at the first call
    began = time.perf_counter()
    with profile(activities=[kind]) as profiler:
        transfer(session, "14B", session.blocks, "out", **settings)
        session.wait()
    wall = time.perf_counter() - began
    covered, span, summed = busy_share(profiler, cuda=session.cuda)
    if not span:
        session.leave_out(f"how busy the card is, {name}", "the profiler saw no kernel, as where it may not look")
        return {}
    share = covered / span
    kernels = costliest(profiler)
    session.say(
        f"   {name}: {'the card' if session.cuda else 'anything'} ran for {covered:.2f} s of the {span:.2f} s from its "
        f"first to its last work, {share:.0%} (kernels add up to {summed:.2f} s; the whole call, being profiled, took "
        f"{wall:.2f} s)"
    )
    for kernel, spent, calls in kernels[:6]:
        session.say(f"      {spent:.3f} s in {calls} calls of {kernel[:110]}")
    return {"covered": covered, "span": span, "sum": summed, "wall": wall, "share": share, "kernels": kernels}


def _trace(session: Session, name: str, **settings: object) -> dict[str, str]:
    """What the program asks of the card and when, thread by thread, into a file. Slower than without."""
    assert session.traces is not None
    every = torch.profiler._ExperimentalConfig(profile_all_threads=True)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if session.cuda else [])]
    with profile(activities=kinds, experimental_config=every) as profiler:
        transfer(session, "14B", session.blocks, "out", **{"lora": 1, **settings})
        session.wait()
    path = session.traces / f"{name}.json.gz"
    profiler.export_chrome_trace(str(path))
    return {"file": path.name}
