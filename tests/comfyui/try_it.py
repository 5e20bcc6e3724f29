"""Tries the nodes in a real ComfyUI: `python tests/comfyui/try_it.py CHECKOUT`, with the Python that runs ComfyUI.

Makes a tiny Wan, its distillation and a LoRA in a temporary folder, starts the server there on loopback and the CPU,
posts workflows, and compares what the stock loaders make of the new LoRA with the numbers in its file.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import loraport

sys.path.append(str(Path(__file__).parents[1]))  # the folder of this file is there already

from server import PACK, Server

import pico

WIDTH, FFN = 128, 256  # ComfyUI wants heads of 128
NOT_LOADED = "lora key not loaded"
Prompt = dict[str, Any]


def write_files(server: Server) -> None:
    """A pair of models with two blocks, one with so many that a cancel comes in time, a LoRA for each; and nonsense."""
    for name, blocks in (("tiny", 2), ("long", 24)):
        base = pico.weights(1, width=WIDTH, ffn=FFN, blocks=blocks, text=4096, frequency=256)
        save_file(base, server.models / f"{name}.safetensors")
        save_file(pico.distilled(base, 2), server.models / f"{name}-fast.safetensors")
        layers = {f"blocks.{n}.{layer}": shape for n in range(blocks) for layer, shape in pico.LINEARS.items()}
        save_file(pico.lora(3, width=WIDTH, ffn=FFN, layers=layers), server.loras / f"{name}-style.safetensors")
    save_file(pico.lora(4, width=WIDTH, ffn=FFN), server.loras / "distillation.safetensors")
    (server.loras / "nonsense.safetensors").write_text("no tensors in here", encoding="utf-8")


def example() -> Prompt:
    """The example of the pack as the page sends it when it is queued."""
    page = json.loads((PACK / "example_workflows" / "transfer_lora.json").read_text(encoding="utf-8"))
    origin = {link: [str(node), slot] for link, node, slot, *_ in page["links"]}
    prompt = {}
    for node in page["nodes"]:
        linked = {each["name"]: origin[each["link"]] for each in node.get("inputs", ()) if each["link"] is not None}
        inputs = node.get("widgets_values_named", {}) | linked
        if node["type"] != "Note":
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    del prompt["9"]["inputs"]["control_after_generate"]  # what the page does with the seed
    return prompt


def workflow(name: str, *, strength: float = 1.0) -> Prompt:
    """The example on the tiny files: without text encoder and decoder, and with the patched model saved."""
    prompt = example()
    pair = {"source": "tiny.safetensors", "target": "tiny-fast.safetensors"}
    prompt["1"]["inputs"] |= {"lora": "tiny-style.safetensors", "save_as": name, **pair}
    prompt["3"]["inputs"]["unet_name"] = pair["target"]
    prompt["4"]["inputs"]["strength_model"] = strength
    prompt["8"]["inputs"] |= {"width": 64, "height": 64, "length": 5}
    prompt["9"]["inputs"] |= {"steps": 2}
    for node in ("5", "10", "11", "12"):
        del prompt[node]
    prompt["6"] = prompt["7"] = {"class_type": "RandomConditioning", "inputs": {}}
    prompt["13"] = {"class_type": "SaveLatent", "inputs": {"samples": ["9", 0], "filename_prefix": f"{name}-latent"}}
    prompt["14"] = {"class_type": "ModelSave", "inputs": {"model": ["4", 0], "filename_prefix": name}}
    return prompt


def stock(lora_name: object, saved: str) -> Prompt:
    """The loader that everybody uses, on the target, and the patched model saved."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny-fast.safetensors", "weight_dtype": "default"}},
        "2": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": lora_name, "strength_model": 1.0},
        },
        "3": {"class_type": "ModelSave", "inputs": {"model": ["2", 0], "filename_prefix": saved}},
    }


def only(prompt: Prompt, *nodes: str) -> Prompt:
    """Some nodes of a workflow."""
    return {node: prompt[node] for node in nodes}


def compare(patched: Path, target: Path, lora: Path) -> float:
    """Largest relative error of a patched weight's update; what the LoRA does not touch must be as it was."""
    new, old, factors = load_file(patched), load_file(target), load_file(lora)
    names = {key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight")}
    assert 2 * len(names) == len(factors), "the file holds factors only"
    worst = 0.0
    for key, before in old.items():
        base = f"diffusion_model.{key.removesuffix('.weight')}"
        change = new[f"model.diffusion_model.{key}"].double() - before.double()
        if base not in names:
            assert not change.any(), f"{key} was changed"
            continue
        names.discard(base)
        update = factors[f"{base}.lora_B.weight"].double() @ factors[f"{base}.lora_A.weight"].double()
        worst = max(worst, float((change - update).norm() / update.norm()))
    assert not names, f"no weight for {sorted(names)}"
    return worst


def kinds(told: list[dict[str, Any]]) -> list[str]:
    """What the messages were about."""
    return [event["type"] for event in told]


async def try_all(server: Server) -> None:
    """One check after the other; each says what it found."""
    output = server.base / "output"
    models, loras = server.models, server.loras

    told, shown = await server.run(workflow("fast"))
    assert kinds(told)[-1] == "execution_success", told[-1]
    progress = [event["data"] for event in told if event["type"] == "progress" and event["data"]["node"] == "1"]
    assert progress, "no progress"
    assert progress[-1]["value"] == progress[-1]["max"] == 1000, progress[-1]
    made = loras / "fast.safetensors"
    assert "20 layers by casa" in shown["2"]["text"][0], shown["2"]
    assert shown["2"] == shown["1"], shown
    maps = Path(f"/proc/{server.process.pid}/maps")
    assert not maps.exists() or str(made) not in maps.read_text(), "mapped: Windows could not replace it"
    print("the example workflow runs, with progress:", shown["2"]["text"][0])

    again = server.base / "again.safetensors"
    pair = {"source": models / "tiny.safetensors", "target": models / "tiny-fast.safetensors"}
    loraport.transfer(
        loras / "tiny-style.safetensors", **pair, output=again, options=loraport.RunOptions(cache="off", log="off")
    )
    assert again.read_bytes() == made.read_bytes(), "another file than that of loraport.transfer"
    print("the file is byte for byte that of loraport.transfer")

    worst = compare(output / "fast_00001_.safetensors", models / "tiny-fast.safetensors", made)
    assert worst < 1e-4, worst
    print(f"output `lora` into Load LoRA Model: every key arrives, largest relative error {worst:.1e}")

    told, _ = await server.run(workflow("fast", strength=0.0))
    assert kinds(told)[-1] == "execution_success", told[-1]
    latents = [load_file(output / f"fast-latent_{n:05}_.latent")["latent_tensor"] for n in (1, 2)]
    share = float((latents[0] - latents[1]).norm() / latents[1].norm())
    assert 0.001 < share < 2, share
    print(f"and into the sampler: the result differs by {share:.1%} from that without it")

    for lora_name, saved in (("fast.safetensors", "typed"), (["9", 1], "linked")):
        assert "fast.safetensors" in server.options("LoraLoaderModelOnly", "lora_name")
        prompt = stock(lora_name, saved) | ({"9": workflow("fast")["1"]} if saved == "linked" else {})
        told, _ = await server.run(prompt)
        assert kinds(told)[-1] == "execution_success", told[-1]
        worst = compare(output / f"{saved}_00001_.safetensors", models / "tiny-fast.safetensors", made)
        assert worst < 1e-4, worst
        print(f"stock LoRA loader, name {saved}: every key arrives, largest relative error {worst:.1e}")
    assert NOT_LOADED not in server.said()
    loraport.convert(made, loras / "other-names.safetensors", to="original")
    told, _ = await server.run(stock("other-names.safetensors", "other"))
    assert NOT_LOADED in server.said(), "the check of the log cannot fail"
    print("no key was reported as not loaded, and a file with other names is")

    prompt = only(workflow(""), "1")
    prompt["1"]["inputs"] |= {"target": "none", "distillation_lora": "distillation.safetensors"}
    told, shown = await server.run(prompt)
    assert kinds(told)[-1] == "execution_success", told[-1]
    assert (loras / "tiny-style_for_distillation.safetensors").is_file()
    print("with a distillation LoRA for a target:", shown["1"]["text"][0].replace("\n", " / "))

    before = sorted(loras.rglob("*"))
    prompt = only(workflow("cancelled"), "1")
    prompt["1"]["inputs"] |= {
        "lora": "long-style.safetensors", "source": "long.safetensors", "target": "long-fast.safetensors",
    }  # fmt: skip
    told, _ = await server.run(prompt, cancel=True)
    assert kinds(told)[-1] == "execution_interrupted", kinds(told)
    assert sorted(loras.rglob("*")) == before, "something was left behind"
    told, _ = await server.run(prompt)
    assert kinds(told)[-1] == "execution_success", told[-1]
    assert (loras / "cancelled.safetensors").is_file()
    print("cancel ends the transfer and leaves nothing behind; the same workflow then runs to its end")

    before = sorted(loras.rglob("*"))
    (loras / "mine.safetensors").write_bytes((loras / "tiny-style.safetensors").read_bytes())
    before.append(loras / "mine.safetensors")
    for change, message in (
        ({"lora": "nonsense.safetensors"}, "nonsense.safetensors"),
        ({"lora": "long-style.safetensors"}, "blocks.2"),
        ({"target": "none"}, "(target) or distillation LoRAs for the source (distillation_lora)"),
        ({"save_as": "../outside"}, "leads out of the LoRA folder"),
        ({"save_as": "mine"}, "add overwrite"),
    ):
        prompt = only(workflow("wrong"), "1")
        prompt["1"]["inputs"] |= change
        told, _ = await server.run(prompt)
        assert kinds(told)[-1] == "execution_error", kinds(told)
        said = told[-1]["data"]["exception_message"]
        assert message in said, said
        assert "Traceback" not in said
        assert "--" not in said, "an option of the command line"
        assert 'File "' not in said, said
        print(f"refused: {change}:", said.strip().replace("\n", " / "))
    assert sorted(loras.rglob("*")) == sorted(before), "something was left behind"

    for lora, model, verdict in (
        ("fast.safetensors", "tiny-fast.safetensors", "IN ORDER"),
        ("long-style.safetensors", "tiny.safetensors", "NOT IN ORDER: fits the model"),
        ("nonsense.safetensors", "none", "CANNOT BE USED"),
    ):
        told, shown = await server.run(
            {"1": {"class_type": "LoraportCheckLora", "inputs": {"lora": lora, "model": model}}}
        )
        assert kinds(told)[-1] == "execution_success", told[-1]
        text = shown["1"]["text"][0]
        assert text.startswith(verdict), text
        print(f"Check LoRA of {lora}:", text.replace("\n", " / "))


def main() -> None:
    """Start, try, end."""
    if len(sys.argv) != 2 or not (checkout := Path(sys.argv[1]).resolve() / "main.py").is_file():
        sys.exit("usage: python tests/comfyui/try_it.py FOLDER_OF_COMFYUI")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(checkout.parent, Path(folder))
        with server:
            write_files(server)
            server.wait()
            print("ComfyUI", server.get("system_stats")["system"]["comfyui_version"])
            try:
                asyncio.run(try_all(server))
            except BaseException:
                print("---- end of the log of ComfyUI ----", server.said()[-4000:], sep="\n")
                raise
    print("all checks passed")


if __name__ == "__main__":
    main()
