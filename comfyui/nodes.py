"""The nodes as ComfyUI sees them: pickers, progress, cancel, outputs. The work is in `actions`."""

import contextlib
import os
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.comfy_types import IO

import loraport

from . import actions

NONE = "none"
_MODELS = ("diffusion_models", "checkpoints", "unet_gguf")  # the last is there where ComfyUI-GGUF is installed
_TICKS = 1000


def _model_names() -> list[str]:
    known = [folder for folder in _MODELS if folder in folder_paths.folder_names_and_paths]
    return list(dict.fromkeys(name for folder in known for name in folder_paths.get_filename_list(folder)))


def _path(name: str, *folders: str) -> Path:
    """Where a name of a picker is. Raises LoraportError if it has gone since."""
    for folder in folders:
        if folder in folder_paths.folder_names_and_paths and (found := folder_paths.get_full_path(folder, name)):
            return Path(found)
    raise loraport.LoraportError(
        "the file is not there any more", values=name, fix="refresh the lists (key R) and choose again"
    )


class RefusedError(Exception):
    """A message for the user. ComfyUI shows the text of an exception; the cause behind it is of no use to anybody."""

    __module__ = "loraport"  # the page shows it in front of the text, and would show the path of this file

    def __init__(self, error: loraport.LoraportError):
        super().__init__(actions.in_words_of_the_node(error.message))


class TransferLora:
    """Transfers a LoRA from the model it was trained on to another of its family, such as a distilled one."""

    DESCRIPTION = (
        "Rewrites a LoRA that was trained on one model for another of its family, such as a distilled one. The result "
        "is written into the LoRA folder; load it at strength 1."
    )
    CATEGORY = "loaders/loraport"
    RETURN_TYPES = ("LORA_MODEL", IO.ANY, "STRING")
    RETURN_NAMES = ("lora", "lora_name", "report")
    OUTPUT_TOOLTIPS = (
        "For the node Load LoRA Model.",
        "For the lora_name of any LoRA loader.",
        "What was done, with all notes.",
    )
    FUNCTION = "transfer"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The pickers, filled anew whenever ComfyUI asks."""
        defaults = {name: field.default for name, field in loraport.Recipe.model_fields.items()}
        loras, models, methods = folder_paths.get_filename_list("loras"), _model_names(), loraport.list_methods()
        return {
            "required": {
                "lora": (loras, {"tooltip": "The LoRA to transfer."}),
                "source": (models, {"tooltip": "The model the LoRA was trained on."}),
                "target": (
                    [*models, NONE],
                    {"tooltip": "The model you use; none if a distillation LoRA on the source makes it."},
                ),
                "method": (
                    list(methods),
                    {"default": defaults["method"], "tooltip": "\n".join(f"{a}: {b}" for a, b in methods.items())},
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": defaults["strength"], "min": -10.0, "max": 10.0, "step": 0.01,
                        "tooltip": "Strength of the whole LoRA, applied before the method.",
                    },
                ),
                "amount": (
                    "FLOAT",
                    {
                        "default": defaults["amount"], "min": 0.0, "max": 1.0, "step": 0.01,
                        "tooltip": "0 is the LoRA unchanged, 1 the full method.",
                    },
                ),
                "save_as": (
                    "STRING",
                    {"default": "", "tooltip": "Name in the LoRA folder; empty for LORA_for_TARGET."},
                ),
            },
            "optional": {
                "distillation_lora": (
                    [NONE, *loras],
                    {"tooltip": "A distillation LoRA that makes the target: on the source, or on top of the target."},
                ),
                "rank": (
                    "STRING",
                    {"default": defaults["rank"], "tooltip": "auto, same, full, a number, or energy=0.99."},
                ),
                "device": (["auto", "cpu"], {"tooltip": "Where to compute: the GPU if there is one, or the CPU."}),
                "overwrite": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Replace any file of that name. Earlier results of this node are always replaced.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, lora: Any, source: Any, target: Any, distillation_lora: Any = NONE, **others: Any) -> str:
        """A text that changes when one of the files does. ComfyUI hands over all inputs, and None for linked ones."""
        told = []
        for name, folders in ((lora, ["loras"]), (source, _MODELS), (target, _MODELS), (distillation_lora, ["loras"])):
            found = None
            if isinstance(name, str) and name != NONE:
                with contextlib.suppress(loraport.LoraportError, OSError):  # the run says it
                    found = os.stat(_path(name, *folders))
            told.append(f"{name} {found and (found.st_size, found.st_mtime_ns)}")
        return "\n".join(told)

    def transfer(
        self,
        lora: str,
        source: str,
        target: str,
        method: str,
        strength: float,
        amount: float,
        save_as: str,
        distillation_lora: str = NONE,
        rank: str = "auto",
        device: str = "auto",
        overwrite: bool = False,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Write the new LoRA, and hand it on. Raises RefusedError with a message for the user."""
        bar = comfy.utils.ProgressBar(_TICKS, node_id=unique_id)

        def on_progress(share: float) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(round(share * _TICKS))

        try:
            name = actions.output_name(lora, distillation_lora if target == NONE else target, save_as)
            output = Path(folder_paths.get_folder_paths("loras")[0], name)
            settings = {
                "lora": _path(lora, "loras"),
                "source": _path(source, *_MODELS),
                "target": None if target == NONE else _path(target, *_MODELS),
                "target_lora": (
                    () if distillation_lora == NONE else loraport.AddedLora(file=_path(distillation_lora, "loras"))
                ),
                "method": method,
                "strength": strength,
                "amount": amount,
                "rank": rank,
            }
            report = actions.transfer(settings, output, device=device, overwrite=overwrite, on_progress=on_progress)
        except loraport.LoraportError as error:
            raise RefusedError(error) from None
        loaded = comfy.utils.load_torch_file(str(output), safe_load=True)
        made = {key: tensor.clone() for key, tensor in loaded.items()}  # Windows replaces no file that is mapped
        return {"ui": {"text": (report,)}, "result": (made, name.replace("/", os.sep), report)}


class CheckLora:
    """Says what a LoRA is, whether it is in order, which programs take it, and whether it fits a model."""

    DESCRIPTION = "What a LoRA is, whether it is in order, how much of it ComfyUI loads, and whether it fits a model."
    CATEGORY = "loaders/loraport"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("verdict",)
    FUNCTION = "check"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The pickers, filled anew whenever ComfyUI asks."""
        return {
            "required": {"lora": (folder_paths.get_filename_list("loras"), {"tooltip": "The LoRA to check."})},
            "optional": {"model": ([NONE, *_model_names()], {"tooltip": "Also check whether it fits this model."})},
        }

    @classmethod
    def IS_CHANGED(cls, lora: Any, model: Any = NONE) -> float:
        """Never the same: it is quick, and files change."""
        return float("nan")

    def check(self, lora: str, model: str = NONE) -> dict[str, Any]:
        """The verdict, as the output and under the node."""
        try:
            fits = None if model == NONE else _path(model, *_MODELS)
            text = actions.verdict(_path(lora, "loras"), fits)
        except loraport.LoraportError as error:
            raise RefusedError(error) from None
        return {"ui": {"text": (text,)}, "result": (text,)}


NODE_CLASS_MAPPINGS = {"LoraportTransferLora": TransferLora, "LoraportCheckLora": CheckLora}
NODE_DISPLAY_NAME_MAPPINGS = {"LoraportTransferLora": "Transfer LoRA", "LoraportCheckLora": "Check LoRA"}
