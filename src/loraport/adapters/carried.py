"""How an output profile spells what is passed on of a LoRA; asked before the work, and without any numbers."""

from collections.abc import Sequence

from loraport.adapters.dialect import SAME_AS_INPUT, Profile
from loraport.adapters.passthrough import Passthrough, PassthroughUpdate, check_source
from loraport.errors import UnsupportedError
from loraport.models.family import Family


def check_passthrough(passthrough: Sequence[Passthrough], profile: Profile, family: Family) -> None:
    """Raise UnsupportedError where the profile has no spelling for something that is carried, or where a change is made
    of the source's own and no source was given: before any work."""
    for item in passthrough:
        check_source(item)
        if item.shape is None and isinstance(item, PassthroughUpdate):
            raise item.shape_unknown()
        passthrough_key(item, profile, family)


def passthrough_key(item: Passthrough, profile: Profile, family: Family) -> str:
    """The key of a tensor that is passed through. Raises UnsupportedError where the profile has none."""
    if item.kind == "text_encoder" or (profile.name == SAME_AS_INPUT and item.as_stored):
        return item.keys[0]
    part = item.kind if profile.name == SAME_AS_INPUT else profile.carries.get(changed(item, family))
    if part == "lora_bias" and family.role(item.module) != "linear":
        part = None
    if part == "diff_m" and not item.module.endswith("modulation"):
        part = "diff"
    if part is None:
        raise UnsupportedError(
            f"the loaders of the {profile.name} profile do not take a change of {item.param}",
            where=str(item.ref.file),
            values=item.keys[0],
            fix="write another profile (universal takes it), or leave it out with --drop",
        )
    return profile.dialect.extra(item.module, part, family)


def changed(item: Passthrough, family: Family) -> str:
    """What a tensor that is passed through changes: "bias", "weight", "param", or "" for another model's part."""
    role = family.role(item.module)
    return "" if role is None else "param" if role == "param" else item.param.rpartition(".")[2]
