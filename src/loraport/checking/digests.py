"""The digests of what a check looks at, where they cost nothing or little: a check reads a sample of the models."""

from loraport.containers.references import TensorRef
from loraport.engine.inputs import joined_digests, owner_of
from loraport.engine.known_digests import KnownDigests, remembered
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan

SOON_READ = 256 * 2**20
"""Bytes of a LoRA up to which it is read for its digest."""


def known_digests(plan: TransferPlan, options: RunOptions, *, read: bool) -> dict[str, str]:
    """The digests of `engine.inputs.input_digests`, as a transfer of these files has them, of those inputs of which all
    are known. Nothing is written.

    Args:
        plan: of the transfer that could follow.
        options: where earlier runs left what they remember.
        read: whether the LoRA may be read for it.

    Raises:
        FileError: the LoRA cannot be read.
    """
    _, known = remembered(options, plan.identities)
    layers = [(job.name, job.refs) for job in plan.jobs]
    size = sum(ref.nbytes for _, refs in layers for role, ref in refs.items() if owner_of(role) == "lora")
    soon = read and size <= SOON_READ
    found = [
        (name, {role: _digest(ref, known, read=soon and owner_of(role) == "lora") for role, ref in refs.items()})
        for name, refs in layers
    ]
    lacking = {owner_of(role) for _, digests in found for role, digest in digests.items() if digest is None}
    return joined_digests(
        (
            name,
            {role: digest for role, digest in digests.items() if digest is not None and owner_of(role) not in lacking},
        )
        for name, digests in found
    )


def _digest(ref: TensorRef, known: KnownDigests, *, read: bool) -> str | None:
    found = known.known_digest(ref)
    if found is None and read:
        from loraport.containers.tensors import digest  # brings torch along

        found = digest(ref)
    return found
