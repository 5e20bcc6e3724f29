"""What programs that load LoRAs will make of a file, where they do not all take it in full."""

from collections.abc import Iterable, Mapping

from loraport.adapters.adapter import Carried
from loraport.models.architecture import Architecture, LayerName
from loraport.models.family import block_of


def loader_notes(
    profile: str, ranks: Mapping[LayerName, int], carried: Iterable[Carried], architecture: Architecture
) -> tuple[str, ...]:
    """Sentences about what some loaders leave out or refuse.

    Args:
        profile: the output profile.
        ranks: canonical layer -> rank, of everything that is written as factors.
        carried: what is passed on.
        architecture: the model the file is for.
    """
    carried = list(carried)
    kinds = {architecture.role(item.module) for item in carried if item.kind != "text_encoder"} - {"linear"}
    notes = []
    if profile == "kohya":
        notes += _kohya(ranks, carried, architecture)
    if profile == "original":
        notes.append("bare names: diffusers and ComfyUI do not read this file; LightX2V, DiffSynth and FastVideo do")
    if profile == "universal":
        if any(item.kind == "text_encoder" for item in carried):
            notes.append("diffusers refuses the file, because it also holds keys of a text encoder; others take it")
        if kinds:
            notes.append(
                "diffusers, FastVideo and DiffSynth leave the changes of norms, convolution and modulation out"
            )
    if len(set(ranks.values())) > 1:
        notes.append("the ranks differ from layer to layer; diffusers before 0.40 mis-scales such a file")
    if profile in {"universal", "original"} and any(name.endswith(("k_img", "v_img")) for name in ranks):
        notes.append("FastVideo leaves the image projections (k_img, v_img) out unless they have diffusers names")
    return tuple(notes)


def _kohya(ranks: Mapping[LayerName, int], carried: list[Carried], architecture: Architecture) -> list[str]:
    family = architecture.family
    inside = {
        name
        for name in family.modules(architecture.dimensions["blocks"])
        if (template := family.template_of(name)) and template.repeated and template.role == "linear"
        if not template.optional
    }
    outside = [name for name in ranks if not block_of(name)]
    if carried or outside or inside - ranks.keys():
        return ["diffusers reads kohya files only where every layer of every block is there and nothing else"]
    return []
