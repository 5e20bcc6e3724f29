"""How fast a card is, and how much of its memory is used; the published procedure on the same card."""

import importlib.util
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import published_dense
from gpu_correct import transfer
from gpu_session import Clock, Session, Watch, command, pinning
from matrices import weight_pair
from steps import bytes_on_a_card
from synthetic import SIZES, linears

BLOCKS = 40
"""Of a 14B model."""
ROOM = "6GB"
GIGA = 1e9


def env(session: Session) -> None:
    """What the card and the host do in a second."""
    session.step("rates", lambda: _rates(session), 20)


def _rates(session: Session) -> dict[str, float]:
    n, device = 256 if session.tiny else 8192, session.device
    found: dict[str, float] = {}
    before = torch.get_float32_matmul_precision()
    kinds = (("float32", "highest"), ("float32", "high"), ("bfloat16", "highest"), ("float64", "highest"))
    for dtype, precision in kinds:
        torch.set_float32_matmul_precision(precision)
        a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
        spent = session.seconds(lambda: a @ a, repeat=3, warm=1)  # noqa: B023
        label = "TF32" if precision == "high" else dtype
        found[f"{label}, TFLOP/s"] = 2 * n**3 / spent / 1e12
    torch.set_float32_matmul_precision(before)
    host = torch.empty(n * n, dtype=torch.float32)
    there = torch.empty(n * n, dtype=torch.float32, device=device)
    found["to the device, GB/s"] = host.nbytes / session.seconds(lambda: there.copy_(host), 3, 1) / GIGA
    found["from the device, GB/s"] = host.nbytes / session.seconds(lambda: host.copy_(there), 3, 1) / GIGA
    if session.cuda:
        pinned = host.pin_memory()
        found["to the device, pinned, GB/s"] = host.nbytes / session.seconds(lambda: there.copy_(pinned), 3, 1) / GIGA
    session.say("   " + "  ".join(f"{name} {value:.3g}" for name, value in found.items()))
    return found


def eigen(session: Session) -> None:
    """The symmetric eigenproblem, in all ways that this version knows, as long as they are not hopeless."""
    before: dict[str, tuple[int, float]] = {}
    for side in session.sides:
        source, _ = weight_pair(side, side, 0.03, torch.Generator().manual_seed(0), device=session.device)
        G = source.T @ source
        for name, count, work in _ways(source, G):
            last, spent = before.get(name, (side, 1.0))
            expected = spent * (side / last) ** 3
            if name != FLOOR and expected > HOPELESS:
                session.leave_out(f"{name}, {side}", f"about {expected:.0f} s")
                continue
            found = session.step(f"{name}, {side}", lambda: _eigen(session, name, G, count, work), 3 * expected)  # noqa: B023
            if found:
                before[name] = side, found["seconds"]
    session.release()


HOPELESS = 8.0
"""Seconds: what takes longer than this is no way to decompose a layer."""
FLOOR = "eigh, float32"


def _ways(W: torch.Tensor, G: torch.Tensor):  # type: ignore[no-untyped-def]
    try:
        from eigen import ways
    except ImportError:
        yield FLOOR, 1, lambda: torch.linalg.eigh(G)
        return
    yield from ways(W, G)


def _eigen(session: Session, name: str, G: torch.Tensor, count: int, work: Callable[[], Any]) -> dict[str, float]:
    spent = session.seconds(work, warm=1 if len(G) < 3000 else 0) / count
    found, pair = {"seconds": spent}, work() if len(G) < 3000 else None
    told = ""
    if pair is not None:
        values, V = pair[0].double(), pair[1].double()
        found["residual"] = float((G.double() @ V - V * values).abs().max() / values.abs().max())
        told = f"  residual {found['residual']:.1e}"
    session.say(f"   {len(G)}  {name}: {spent * 1e3:.1f} ms{told}")
    return found


def speed(session: Session) -> None:
    """A pair of 14B shapes: each method, first and further LoRA, against reading both files once."""
    session.step("models of 14B shapes", lambda: str(session.pair("14B", session.blocks).source), 60)
    session.step(
        "warm-up", lambda: run_timed(session, "warm-up", method="casa", lora=2, drop=all_but("self_attn.q")), 20
    )
    session.step("reading both files once", lambda: _reading(session), 30)
    for method in ("direct", "matched-gain", "casa"):
        session.step(f"plan of {method}", lambda m=method: _planned(session, m), 20)  # type: ignore[misc]
    for method in ("direct", "matched-gain"):
        session.step(f"{method}, 14B", lambda m=method: run_timed(session, f"{m}, 14B", method=m), 40)  # type: ignore[misc]
    session.step("casa first, 14B", lambda: run_timed(session, "casa first, 14B", method="casa"), 40)
    cache = str(session.work / "cache")
    kept = session.step(
        "casa first, kept", lambda: run_timed(session, "casa first, kept", method="casa", cache=cache), 50
    )
    if kept:
        session.step("casa further, 14B", lambda: run_timed(session, "casa further, 14B", lora=1, cache=cache), 30)


def run_timed(session: Session, name: str, **settings: object) -> dict[str, Any]:
    """One transfer of the pair of 14B shapes: seconds, memory, and what they are for a whole model."""
    before = 0
    if session.cuda:
        torch.cuda.reset_peak_memory_stats(session.device)
        before = torch.cuda.memory_allocated(session.device)  # of the libraries, from earlier runs
    (_, pinned), clock = pinning(session), Clock()
    with Watch(session) as watch:
        began = time.perf_counter()
        report = transfer(session, "14B", session.blocks, "out", on_event=clock, **settings)
        spent = time.perf_counter() - began
    whole = clock.whole(spent, BLOCKS / session.blocks)
    pinned = pinning(session)[1] - pinned  # of all threads together; once for a process that goes on
    reserved = torch.cuda.max_memory_reserved(session.device) if session.cuda else 0
    allocated = torch.cuda.max_memory_allocated(session.device) - before if session.cuda else 0
    by_shape: dict[str, list[float]] = {}
    for layer in report.layers:
        by_shape.setdefault("x".join(map(str, layer.shape)), []).append(layer.seconds)
    layers = {shape: sum(found) / len(found) for shape, found in by_shape.items()}
    session.say(
        f"   {name}: {spent:.2f} s for {len(report.layers)} layers, about {whole:.0f} s for {BLOCKS} blocks | "
        + " ".join(f"{shape} {seconds:.2f}" for shape, seconds in layers.items())
        + f" | memory {watch.whole / GIGA:.2f} GB at most, {watch.more / GIGA:.2f} of it for this"
        + (f", {reserved / GIGA:.2f} in torch's hands | pinning {pinned:.2f} s" if session.cuda else "")
    )
    return {
        "wall": spent,
        "whole": whole,
        "pinning": pinned,
        "blocks": session.blocks,
        "layers": layers,
        "peak": watch.whole,
        "more": watch.more,
        "reserved": reserved,
        "allocated": allocated,
        "on": sorted({layer.device for layer in report.layers}),
        "warnings": list(report.warnings),
    }


def _planned(session: Session, method: str) -> float:
    """Seconds that `plan` expects of a first LoRA, with the rates that it measures itself."""
    pair = session.pair("14B", session.blocks)
    models = ["--source", str(pair.source), "--target", str(pair.target), "--device", session.device]
    words = ["plan", str(pair.loras[0]), *models, "--method", method, "--cache", str(session.work / "rates"), "--json"]
    done = subprocess.run(command(*words), capture_output=True, text=True, check=True)
    cost = json.loads(done.stdout)["cost"]
    session.say(f"   plan of {method}: {cost['seconds']:.2f} s, {cost['card_bytes'] / GIGA:.2f} GB of the card")
    return float(cost["seconds"])


def _reading(session: Session) -> dict[str, float]:
    """The bytes of both files into new memory, by one thread and by as many as pay, and into memory used again."""
    pair = session.pair("14B", session.blocks)
    found = {}
    for threads in (1, 4, 8):
        found[str(threads)] = session.seconds(lambda: _read((pair.source, pair.target), threads), repeat=2)  # noqa: B023
    found["8, memory used again"] = session.seconds(lambda: _read((pair.source, pair.target), 8, again=True), repeat=2)
    size = (pair.source.stat().st_size + pair.target.stat().st_size) / GIGA
    told = ", ".join(f"{threads} threads {seconds:.2f} s" for threads, seconds in found.items())
    session.say(f"   reading {size:.2f} GB once: {told}")
    return found


def _read(files: tuple[Path, ...], threads: int, *, again: bool = False, piece: int = 64 << 20) -> None:
    own = threading.local()

    def part(task: tuple[Path, int]) -> None:
        if not again or not hasattr(own, "memory"):
            own.memory = bytearray(piece)
        with task[0].open("rb", buffering=0) as file:
            file.seek(task[1])
            file.readinto(own.memory)

    tasks = [(file, at) for file in files for at in range(0, file.stat().st_size, piece)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, tasks))


def all_but(name: str) -> str:
    """A pattern for --drop that leaves one layer, of the first block."""
    others = "|".join(re.escape(other) for other in linears(SIZES["pico"]) if other != name)
    return rf"blocks\.(?!0\.)|({others})(\.|$)"


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(session: Session) -> None:
    """Peak memory with a bound on it, and what the bound costs; that of one layer, against the formula."""
    session.step(f"casa first, at most {ROOM}", lambda: run_timed(session, f"casa first, {ROOM}", max_memory=ROOM), 60)
    for name in ("self_attn.q", "ffn.0"):
        session.step(f"memory of {name}", lambda n=name: _alone(session, n), 20)  # type: ignore[misc]


def _alone(session: Session, name: str) -> dict[str, float]:
    """Bytes of torch's tensors while there is one layer, and how much more than is foreseen that is."""
    if not session.cuda:
        session.leave_out(f"memory of {name}", "torch counts the bytes of tensors on a card only")
        return {}
    shape = linears(session.size("14B"))[name]
    found = run_timed(session, f"memory of {name}", method="casa", workers=1, drop=all_but(name))
    foreseen = bytes_on_a_card(shape)
    session.say(f"   {shape[0]} x {shape[1]}: {found['allocated'] / GIGA:.2f} GB, {foreseen / GIGA:.2f} foreseen")
    return {"allocated": found["allocated"], "share": found["allocated"] / foreseen}


# ---- the published procedure -----------------------------------------------------------------------------------------


def dense(session: Session) -> None:
    """The published procedure, densely, on the same card, a layer of each kind; ours on the same layers."""
    if importlib.util.find_spec("scipy") is None:
        session.leave_out("the published procedure", "it needs scipy, which is not installed")
        return
    spent, measured = 5.0, 1.0
    for size, names in (("1.3B", ("self_attn.q",)), ("14B", ("self_attn.q", "ffn.0", "ffn.2"))):
        for name in names:
            m, n = linears(session.size(size))[name]
            work = float(m * n * (m + n))  # of a decomposition with both sides whole
            guess = spent if measured == 1.0 else spent * work / measured
            label = f"published, {size} {name}"
            found = session.step(label, lambda: _published(session, size, name), 1.5 * guess)  # noqa: B023
            if found is not None:
                spent, measured = max(found["theirs"], 0.2), work


def _published(session: Session, size: str, name: str) -> dict[str, float]:
    blocks = 1 if size == "1.3B" else session.blocks
    pair, layer = session.pair(size, blocks), f"blocks.0.{name}"
    work = session.work / "dense"
    work.mkdir(exist_ok=True)
    published_dense.full_basis(torch.eye(8, device=session.device))
    spent: dict[str, float] = {}
    for label, step in (
        ("bases", lambda: published_dense.bases(pair.source, work, [layer], session.device)),
        ("drift", lambda: published_dense.drifts(pair.target, work, [layer], session.device)),
        ("transfer", lambda: published_dense.transfer(pair.loras[0], work, [layer], work / "out", session.device)),
        ("further", lambda: published_dense.transfer(pair.loras[1], work, [layer], work / "out", session.device)),
    ):
        spent[label] = session.seconds(step)
    session.release()
    cache, ours = session.work / f"dense-{size}-{name}", {}
    for label, lora in (("first", 0), ("further", 1)):
        report = transfer(session, size, blocks, "out", lora=lora, drop=all_but(name), rank="32", cache=str(cache))
        ours[label] = report.layers[0].seconds
    theirs = spent["bases"] + spent["drift"] + spent["further"]  # the first transfer also loads libraries
    found = {"theirs": theirs, "ours": ours["first"], "ratio": theirs / ours["first"]}
    found |= {"further, theirs": spent["further"], "further, ours": ours["further"]} | spent
    session.say(
        f"   {size} {name}, first LoRA: published {theirs:.2f} s, ours {ours['first']:.2f} s, {found['ratio']:.1f} "
        f"times; further {spent['further']:.2f} and {ours['further']:.2f} s"
    )
    return found
