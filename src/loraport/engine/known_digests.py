"""The digests of a plan's tensors, as far as earlier runs remembered them. Nothing is read."""

from collections.abc import Mapping
from pathlib import Path

from loraport.containers.references import TensorRef, file_identity, place
from loraport.store.digests import DigestMemo


class KnownDigests:
    """Digests by tensor, for files in the state in which a plan found them.

    Args:
        memo: digests remembered from earlier runs.
        identities: file -> its `file_identity` when the plan was made. Files not named are taken as they are now.
    """

    def __init__(self, memo: DigestMemo, identities: Mapping[Path, str] | None = None):
        self.memo = memo
        self.identities = dict(identities or {})

    def known_digest(self, ref: TensorRef) -> str | None:
        """The digest of a tensor if it is remembered; nothing is read."""
        return self.memo.get(*self.page(ref))

    def known_digests(self, refs: Mapping[str, TensorRef]) -> dict[str, str] | None:
        """Those of tensors by role; None if not all of them are remembered. Nothing is read."""
        known = {role: self.known_digest(ref) for role, ref in refs.items()}
        found = {role: digest for role, digest in known.items() if digest is not None}
        return found if len(found) == len(known) else None

    def is_from_earlier(self, ref: TensorRef) -> bool:
        """Whether an earlier run left its digest; what this run has read itself is no sign of one."""
        return self.memo.is_from_earlier(*self.page(ref))

    def page(self, ref: TensorRef) -> tuple[str, str]:
        """Under which names the digest of a tensor is remembered."""
        files = dict.fromkeys([ref.file, *(companion.file for _, companion in ref.companions)])
        state = "\n".join(self.identities.get(file) or file_identity(file) for file in files)
        return state, place(ref)
