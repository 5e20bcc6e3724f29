"""Models by hub id, fetched through huggingface_hub when it is installed and can be reached."""

import json
from collections.abc import Callable
from pathlib import Path

from loraport.errors import FileError

INDEXES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
TIMEOUT_SECONDS = 10.0


def download(repo: str, inside: str = "", nested: str | None = None) -> Path:
    """Fetch the transformer of a hub repository into the hub's own cache.

    Args:
        repo: "owner/name".
        inside: subfolder in the repository; by default `nested`, `transformer`, or the root.
        nested: name of an expert's subfolder.

    Returns:
        The index or the file, whose neighbours are there too.

    Raises:
        FileError: huggingface_hub is missing, the hub cannot be reached, or the repository has no such model.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise FileError(
            "there is no such file or folder, and hub ids need the package huggingface_hub",
            where=repo,
            fix="check the path, or: pip install 'loraport[hub]'",
        ) from None
    offline = ""
    try:
        # Asked first and once, since a download that cannot reach the hub tries again for half a minute.
        listing = huggingface_hub.HfApi().model_info(repo, timeout=TIMEOUT_SECONDS).siblings or []
        names = {item.rfilename for item in listing}
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        names = None
        offline = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"

    def fetch(name: str) -> Path | None:
        if names is not None and name not in names:
            return None
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, local_files_only=names is None))
        except Exception as error:
            if names is None:
                return None
            raise FileError("a file of the hub repository could not be fetched", where=f"{repo}/{name}",
                            values=f"{type(error).__name__}: {str(error)[:160]}") from None  # fmt: skip

    found = _first(fetch, [inside] if inside else [nested or "transformer", "transformer", ""])
    if found is not None:
        return found
    if names is None:
        raise FileError(
            "there is no such file or folder here, and it could not be fetched as a hub id",
            where="/".join(part for part in (repo, inside) if part),
            values=offline,
            fix="check the path, or the id and the network",
        )
    raise FileError("the hub repository has no model that can be read", where=repo, values=", ".join(INDEXES + FILES))


def _first(fetch: Callable[[str], Path | None], folders: list[str]) -> Path | None:
    for folder in dict.fromkeys(folders):
        start = f"{folder}/" if folder else ""
        for name in (*INDEXES, *FILES):
            found = fetch(start + name)
            if found is None:
                continue
            if name in INDEXES:
                for shard in sorted(set(json.loads(found.read_text("utf-8"))["weight_map"].values())):
                    fetch(start + shard)
            return found
    return None
