"""Models by hub id, fetched through huggingface_hub when it is installed and can be reached."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from loraport.errors import FileError

INDEXES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
TIMEOUT_SECONDS = 10.0


def download(repo: str, inside: str = "", folders: Sequence[str] = (), *, strict: bool = False) -> Path:
    """Fetch the transformer of a hub repository into the hub's own cache, or find it there.

    Args:
        repo: "owner/name".
        inside: subfolder in the repository; by default the first that is there of `folders`, `transformer`, the root.
        folders: subfolders to look in first, such as those of an expert.
        strict: look nowhere else where the hub does not answer, since it is not known then whether it has them.

    Returns:
        The index or the file, whose neighbours are there too.

    Raises:
        FileError: huggingface_hub is missing, the hub cannot be reached, or the repository has no such model.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise FileError(
            "no such file or folder, and hub ids need the package huggingface_hub",
            where=repo,
            fix="check the path, or: pip install 'loraport[hub]'",
        ) from None
    places = [inside] if inside else dict.fromkeys([*folders, "transformer", ""])
    wanted = [f"{place}/{name}".lstrip("/") for place in places for name in (*INDEXES, *FILES)]
    try:
        # Asked first and once, since a download that cannot reach the hub tries again for half a minute.
        listing = huggingface_hub.HfApi().model_info(repo, timeout=TIMEOUT_SECONDS).siblings or []
        there = {item.rfilename for item in listing}
        name = next((name for name in wanted if name in there), None)
        found = None if name is None else _fetch(huggingface_hub, repo, name, local=False)
    except Exception as error:  # the client's own, its HTTP library's (it changed that twice) and the system's
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
        if strict and not inside:
            wanted = [name for name in wanted if name.partition("/")[0] in folders]
        return _kept(huggingface_hub, repo, wanted, inside, reason)
    if found is None:
        raise FileError(
            "the hub repository has no model that can be read",
            where=repo,
            values=", ".join(INDEXES + FILES),
            fix="name a folder inside it (owner/name/folder), or download the file and name that",
        )
    return found


def _fetch(hub: ModuleType, repo: str, name: str, *, local: bool) -> Path | None:
    """A file of the repository with its shards, if it is an index; None where the cache has no such file."""
    shards = name.removesuffix(".safetensors.index.json") + "-*.safetensors"
    root = hub.snapshot_download(
        repo, allow_patterns=[name, shards], local_files_only=local, etag_timeout=TIMEOUT_SECONDS
    )
    path = Path(root) / name
    return path if path.is_file() else None


def _kept(hub: ModuleType, repo: str, wanted: list[str], inside: str, reason: str) -> Path:
    """What was fetched before, when the hub does not answer."""
    for name in wanted:
        try:
            found = _fetch(hub, repo, name, local=True)
        except (OSError, ValueError):  # nothing of this repository, or only a part of this model
            continue
        if found is not None:
            return found
    raise FileError(
        "no such file or folder here, and it could not be fetched as a hub id",
        where="/".join(part for part in (repo, inside) if part),
        values=reason,
        fix="check the path, or the hub id and the network",
    )
