"""Models by hub id, fetched through huggingface_hub when it is installed and can be reached."""

import json
from pathlib import Path

from loraport.errors import FileError

INDEXES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def download(repo: str, inside: str = "", nested: str | None = None) -> Path:
    """Fetch the transformer of a hub repository into the hub's own cache; the folder it lies in.

    Args:
        repo: "owner/name".
        inside: subfolder in the repository; by default `nested`, `transformer`, or the root.
        nested: name of an expert's subfolder.

    Raises:
        FileError: huggingface_hub is missing, the hub cannot be reached, or the repository has no such model.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise FileError(
            "there is no such file or folder, and hub ids need the package huggingface_hub",
            where=repo,
            fix="check the path, or: pip install 'loraport[hub]'",
        ) from None
    folders = [inside] if inside else [nested, "transformer", ""] if nested else ["transformer", ""]
    for folder in folders:
        start = f"{folder}/" if folder else ""
        for name in (*INDEXES, *FILES):
            try:
                found = Path(huggingface_hub.hf_hub_download(repo, start + name))
                if name in INDEXES:
                    for shard in sorted(set(json.loads(found.read_text("utf-8"))["weight_map"].values())):
                        huggingface_hub.hf_hub_download(repo, start + shard)
                return found
            except EntryNotFoundError:
                continue
            except Exception as error:
                # The hub client raises its own, requests', httpx' and the system's errors; all mean the same here.
                raise FileError(
                    "there is no such file or folder here, and it could not be fetched as a hub id",
                    where=repo,
                    values=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
                    fix="check the path, or the network and the id",
                ) from None
    raise FileError("the hub repository has no model that can be read", where=repo, values=", ".join(INDEXES + FILES))
