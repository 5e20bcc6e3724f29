"""A ComfyUI of its own: started on loopback with an empty base folder, asked by HTTP, ended afterwards."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp  # ComfyUI brings it

PACK = Path(__file__).parents[2] / "comfyui"
TRIES = """
import torch


class RandomConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([[torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(5)), {}]],)


NODE_CLASS_MAPPINGS = {"RandomConditioning": RandomConditioning}
"""
"""Stands in for a text encoder, which a test has no use for."""


class Server:
    """A running ComfyUI.

    Args:
        checkout: folder of ComfyUI, with its requirements installed for this Python.
        base: an empty folder for models, nodes, output and log.
    """

    def __init__(self, checkout: Path, base: Path):
        self.base, self.log = base, base / "comfyui.log"
        self.loras, self.models = base / "models" / "loras", base / "models" / "diffusion_models"
        nodes = base / "custom_nodes"
        for folder in (self.loras, self.models, nodes / "tries", base / "web"):
            folder.mkdir(parents=True)
        shutil.copytree(PACK, nodes / "loraport", ignore=shutil.ignore_patterns("__pycache__"))
        (nodes / "tries" / "__init__.py").write_text(TRIES, encoding="utf-8")
        (base / "web" / "index.html").write_text("", encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        options = f"--cpu --listen 127.0.0.1 --port {port} --disable-api-nodes --disable-all-custom-nodes"
        options += " --whitelist-custom-nodes loraport tries --database-url sqlite:///:memory: --disable-auto-launch"
        options += " --disable-metadata --log-stdout"
        folders = ["--base-directory", str(base), "--front-end-root", str(base / "web")]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *options.split(), *folders],
                cwd=checkout,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LORAPORT_CACHE": str(base / "cache"), "HF_HUB_OFFLINE": "1"},
            )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def wait(self, seconds: float = 300) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.get("system_stats")
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.said()[-3000:]}")

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, what: str) -> Any:
        """An answer of its interface."""
        with urllib.request.urlopen(f"http://{self.address}/{what}", timeout=60) as answer:
            return json.load(answer)

    def options(self, node: str, name: str) -> list[str]:
        """What a picker of a node offers now."""
        return self.get(f"object_info/{node}")[node]["input"]["required"][name][0]

    async def run(self, prompt: dict[str, Any], *, cancel: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Queue a workflow and wait for its end.

        Args:
            prompt: in the form of the API.
            cancel: press the button as soon as a node tells its progress.

        Returns:
            What was told on the way, and what its nodes show.
        """
        told: list[dict[str, Any]] = []
        async with aiohttp.ClientSession(f"http://{self.address}") as session:
            async with session.ws_connect("/ws", params={"clientId": "try"}, max_msg_size=0) as messages:
                asked = await session.post("/prompt", json={"prompt": prompt, "client_id": "try"})
                answer = await asked.json()
                assert answer.get("node_errors") == {}, json.dumps(answer, indent=1)
                async for message in messages:
                    if message.type != aiohttp.WSMsgType.TEXT:
                        continue
                    told.append(event := message.json())
                    if event["type"] == "progress" and cancel:
                        await session.post("/interrupt")
                        cancel = False
                    if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        break
            history: dict[str, Any] = {}
            while answer["prompt_id"] not in history:  # it is written a moment after the last message
                history = await (await session.get(f"/history/{answer['prompt_id']}")).json()
                await asyncio.sleep(0.05)
        return told, history[answer["prompt_id"]]["outputs"]
