"""The digests of a plan's tensors, as far as they are remembered. Nothing is read.

Work in another process has a memory of its own. What is known of a job's tensors is told to it, and what it learned of
them is learned here (`apart.py`), so that nobody digests what somebody else has digested.
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from loraport.containers.references import TensorRef, file_identity, place
from loraport.engine.options import RunOptions
from loraport.errors import FileError
from loraport.store.digests import DigestMemo
from loraport.store.index import cache_root

Pages = dict[tuple[str, str], str]
"""Digests and checksums by their pages in the memory of digests."""


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

    def checksum(self, page: tuple[str, str]) -> str | None:
        """The checksum of a tensor that has the digest remembered on a page; None where either is not known."""
        known = self.memo.get(*page)
        return None if known is None else self.memo.get(*beside(page, known))

    def told(self, refs: Iterable[TensorRef]) -> Pages:
        """What is known of tensors, for work on them in another process."""
        found: Pages = {}
        for page in map(self.page, refs):
            known, checksum = self.memo.get(*page), self.checksum(page)
            if known is not None:
                found[page] = known
                if checksum is not None:
                    found[beside(page, known)] = checksum
        return found

    def hear(self, told: Pages) -> None:
        """Take over what `told` says, where the work is done."""
        for page, text in told.items():
            self.memo.put(*page, text, lasting=False)

    def learned(self) -> Pages:
        """What was found out here since it was asked last, and lasts."""
        return self.memo.take_new()

    def learn(self, learned: Pages) -> None:
        """Take over what `learned` says, at home. What contradicts it was not true, nor all else known of that file."""
        for page, text in learned.items():
            if self.memo.get(*page) not in (None, text):
                self.memo.forget(page[0])
        for page, text in learned.items():
            self.memo.put(*page, text)


def beside(page: tuple[str, str], digest: str) -> tuple[str, str]:
    """The page of the checksum of a tensor: that of what has this digest."""
    state, place = page
    return state, f"{place} xxh3 of {digest}"


def remembered(options: RunOptions, identities: Mapping[Path, str]) -> tuple[Path | None, KnownDigests]:
    """The cache folder, if it can be used, and the digests that earlier runs left in it.

    Args:
        options: which folder, and whether what earlier runs say is believed.
        identities: as for `KnownDigests`.
    """
    root = None
    if options.cache != "off":
        with contextlib.suppress(FileError):  # a run says why the folder cannot be used
            root = cache_root(options.cache_folder)
    return root, KnownDigests(DigestMemo(root, trust=not options.verify_inputs), identities)
