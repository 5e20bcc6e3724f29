"""Is what a card computes right: fresh processes, equal bytes, agreement with the CPU, several cards, full memory."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import loraport
from gpu_session import Session, command
from loraport.errors import LoraportError

FRESH = 3
"""Processes that make their first decomposition from several threads at once: two of three once crashed."""
NEAR = {"direct": 1e-5, "matched-gain": 1e-5, "uniform-shrink": 1e-5, "prolora": 1e-3, "restore-only": 0.2, "casa": 0.2}
"""Of the update, between the device and the CPU, in the middle layer. Decisions of casa hang on last bits."""
TOO_LITTLE = 20_000_000
"""Bytes: a square layer of 1.3B takes 60 MB."""


def transfer(session: Session, size: str, blocks: int, name: str, *, lora: int = 0, **settings: object):  # type: ignore[no-untyped-def]
    """One transfer by the API; its report. Settings that are options of the run are taken as such."""
    pair = session.pair(size, blocks)
    known = loraport.RunOptions.model_fields
    options = {"device": session.device, "cache": "off", "log": "off", "overwrite": True}
    options |= {key: settings.pop(key) for key in list(settings) if key in known}
    settings.setdefault("method", "casa")
    heard = settings.pop("on_event", None)
    return loraport.transfer(
        pair.loras[lora],
        source=pair.source,
        target=pair.target,
        output=session.work / f"{name}.safetensors",
        options=loraport.RunOptions(**options),
        **({} if heard is None else {"on_event": heard}),
        **settings,
    )


def correct(session: Session) -> None:
    """All checks of one card."""
    session.step("models of 1.3B shapes", lambda: str(session.pair("1.3B", 1).source), 60)
    session.step("fresh processes", lambda: _fresh(session), 60)
    session.step("one and four workers", lambda: _workers(session), 60)
    for method, near in NEAR.items():
        session.step(f"{method} as on the CPU", lambda m=method, n=near: _as_cpu(session, m, n), 40)
    session.step("driver and device", lambda: _driver(session), 20)
    session.step("what is left", lambda: _left(session), 20)
    session.step("full memory", lambda: _full(session), 40)
    session.step("several devices", lambda: _devices(session), 60)
    session.step("Ray", lambda: _ray(session), 90)


def _fresh(session: Session) -> dict[str, object]:
    pair, outs = session.pair("1.3B", 1), []
    for number in range(FRESH):
        out = session.work / f"fresh-{number}.safetensors"
        models = ["--source", str(pair.source), "--target", str(pair.target), "-o", str(out), "--overwrite"]
        options = ["--device", session.device, "--cache", "off", "--log", "off", "--quiet"]
        done = subprocess.run(
            command("transfer", str(pair.loras[0]), *models, *options), capture_output=True, text=True
        )
        if not session.check(f"process {number + 1} ends well", done.returncode == 0, done.stderr.strip()[-200:]):
            return {"ended": done.returncode}
        outs.append(out.read_bytes())
    return {"equal": session.check(f"equal bytes from {FRESH} processes", len(set(outs)) == 1)}


def _workers(session: Session) -> bool:
    files = []
    for workers in (None, 1, 4):
        transfer(session, "1.3B", 1, f"workers-{workers}", workers=workers)
        files.append((session.work / f"workers-{workers}.safetensors").read_bytes())
    return session.check("equal bytes with the usual number of workers, one and four", len(set(files)) == 1)


def _as_cpu(session: Session, method: str, near: float) -> dict[str, float]:
    settings = {"method": method, "dtype": "float32", "rank": "32"}
    transfer(session, "1.3B", 1, "here", **settings)
    transfer(session, "1.3B", 1, "there", **settings | {"device": "cpu"})
    found = apart(session.work / "here.safetensors", session.work / "there.safetensors")
    middle, largest = sorted(found)[len(found) // 2], max(found)
    told = f"{middle:.1e} of the update in the middle layer, {largest:.1e} at most"
    session.check(f"{method} agrees with the CPU", middle < near, told)
    return {"middle": middle, "largest": largest}


def apart(one: Path, other: Path) -> list[float]:
    """Relative difference of each layer's update."""
    a, b, found = load_file(one), load_file(other), []
    for key in a:
        if key.endswith("lora_B.weight"):
            down = key.replace("lora_B", "lora_A")
            first, second = a[key].double() @ a[down].double(), b[key].double() @ b[down].double()
            found.append(float((first - second).norm() / second.norm().clamp_min(1e-30)))
    return found


def _driver(session: Session) -> dict[str, list[str]]:
    report = transfer(session, "1.3B", 1, "driver")
    drivers = sorted({str(layer.stats.get("svd_driver")) for layer in report.layers})
    where = sorted({layer.device for layer in report.layers})
    known = not session.cuda or not any(name.startswith("gesdd") for name in drivers)
    session.check("the driver is one of the device", known, ", ".join(drivers))
    here = all(name.startswith(session.device.partition(":")[0]) for name in where)
    session.check("every layer was computed there", here, ", ".join(where))
    return {"drivers": drivers, "devices": where}


LEFT = 800_000_000
"""Bytes that may stay with torch after a job: what its libraries keep for each pair of a thread and a stream that used
them, 32 MB on an H200."""


def _left(session: Session) -> dict[str, float]:
    """After a job the card is free for others; its weights came from pinned memory, which is free again too."""
    if not session.cuda:
        session.leave_out("what is left on a card", "there is none")
        return {}
    transfer(session, "1.3B", 1, "left")
    reserved = torch.cuda.memory_reserved(session.device)
    session.check("a job leaves the card free", reserved < LEFT, f"{reserved / 1e6:.0f} MB")
    found = {"reserved": float(reserved)}
    if hasattr(torch.cuda, "host_memory_stats"):
        told = torch.cuda.host_memory_stats()
        found |= {name: float(told[f"allocated_bytes.{name}"]) for name in ("allocated", "current")}
        session.check("weights come from pinned memory", found["allocated"] > 0, f"{found['allocated'] / 1e6:.0f} MB")
        if hasattr(torch.accelerator, "empty_host_cache"):
            free = found["current"] < found["allocated"]
            session.check("and it is given back", free, f"{found['current'] / 1e6:.0f} MB are left")
    return found


def _full(session: Session) -> dict[str, object]:
    """A device without room hands layers to the CPU, and says so; the result is the CPU's."""
    if not session.cuda:
        session.leave_out("a device whose memory is full", "the CPU has no other to hand over to")
        return {}
    session.release()  # what torch keeps for later would be taken before the bound counts
    report = transfer(session, "1.3B", 1, "full", max_memory=TOO_LITTLE)
    there = sum(layer.device == "cpu" for layer in report.layers)
    session.check("a full device hands layers to the CPU", there > 0, f"{there} of {len(report.layers)} layers")
    said = [text for text in report.warnings if "out of memory" in text]
    session.check("and says so", len(said) == there, said[0] if said else "nothing was said")
    transfer(session, "1.3B", 1, "roomy", device="cpu")
    same = all(layer.device == "cpu" for layer in report.layers)
    if same:  # else some layers did fit, and have the card's last bits
        equal = (session.work / "full.safetensors").read_bytes() == (session.work / "roomy.safetensors").read_bytes()
        session.check("the bytes are those of a run on the CPU", equal)
    return {"on the CPU": there, "said": len(said)}


def _devices(session: Session) -> dict[str, object]:
    """All devices of one kind give the bytes of one."""
    count = torch.cuda.device_count() if session.cuda else 1
    if count < 2:
        session.leave_out("several devices", f"there is one {'card' if session.cuda else 'CPU'} here")
        return {}
    transfer(session, "1.3B", 1, "one-device", device="cuda:0")
    alone = (session.work / "one-device.safetensors").read_bytes()
    found: dict[str, object] = {"devices": count}
    for named in ("cuda", "cuda:0,cuda:1"):
        try:
            report = transfer(session, "1.3B", 1, "all-devices", device=named)
        except LoraportError as error:
            session.leave_out(f"--device {named}", f"this version refuses it: {error}")
            continue
        used = sorted({layer.device for layer in report.layers})
        same = (session.work / "all-devices.safetensors").read_bytes() == alone
        session.check(f"--device {named} gives the bytes of one card", same, ", ".join(used))
        found[named] = used
    return found


def _ray(session: Session) -> dict[str, object]:
    """Layers as tasks on the cards of a Ray cluster of this machine give the bytes of a run without it."""
    if importlib.util.find_spec("ray") is None:
        session.leave_out("cards under Ray", "Ray is not installed")
        return {}
    files, told = [], ""
    for executor in ("thread", "ray"):
        pair, out = session.pair("1.3B", 1), session.work / f"by-{executor}.safetensors"
        models = ["--source", str(pair.source), "--target", str(pair.target), "-o", str(out), "--overwrite"]
        kind = session.device.partition(":")[0]  # Ray itself says which card
        options = ["--device", kind, "--cache", "off", "--log", "off", "--executor", executor]
        folder = tempfile.mkdtemp(prefix="ray")  # of a short path, as its sockets need
        done = subprocess.run(
            command("transfer", str(pair.loras[0]), *models, *options),
            capture_output=True,
            text=True,
            env=os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": folder},
        )
        shutil.rmtree(folder, ignore_errors=True)
        if not session.check(f"--executor {executor} ends well", done.returncode == 0, done.stderr.strip()[-600:]):
            return {"ended": done.returncode}
        files.append(out.read_bytes())
        told = done.stderr.strip().partition("\n")[0]
    return {"equal": session.check("the bytes of a run under Ray are those of one without", len(set(files)) == 1, told)}
