"""`loraport.compare` and `loraport.probe`: what headers refuse is refused before torch and diffusers are loaded."""

from collections.abc import Sequence
from pathlib import Path

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.arguments import as_paths, check_arguments
from loraport.comparing.pairs import check_lora, find_files, lora_file
from loraport.comparing.plan import ComparePlan
from loraport.comparing.prompts import read_prompts
from loraport.comparing.report import CompareReport, ProbeReport
from loraport.comparing.settings import COLOURS, CompareSettings
from loraport.comparing.sides import find_sides
from loraport.comparing.variants import list_variants
from loraport.containers.names import EXPERTS, Expert, named_for
from loraport.engine.events import Listener, ignore
from loraport.errors import UsageError
from loraport.sampling.folders import need_diffusers
from loraport.sampling.schedule import NO_SETTINGS, SamplingSettings
from loraport.writable import check_output

PathLike = str | Path
DEFAULTS = CompareSettings()
GREY_WALL = "a plain grey wall"


def compare(
    lora: PathLike,
    *,
    source: PathLike,
    target: PathLike | None = None,
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    transferred: PathLike | Sequence[PathLike] = (),
    lora_low: PathLike | None = None,
    target_lora_low: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    transferred_low: PathLike | Sequence[PathLike] = (),
    output: PathLike,
    prompts: PathLike | Sequence[str] | None = None,
    images: PathLike | Sequence[PathLike] = (),
    settings: CompareSettings = DEFAULTS,
    source_sampling: SamplingSettings = NO_SETTINGS,
    target_sampling: SamplingSettings = NO_SETTINGS,
    device: str = "auto",
    on_event: Listener = ignore,
) -> CompareReport:
    """Make the same clips with every variant, measure them, and write a page. Call it again to make what is missing.

    Args:
        lora: LoRA that was trained on the source.
        source: diffusers folder of the pipeline, or a hub id.
        target: the same; or a folder of its transformer (of two experts, with both), or its file, combined with the
            other parts of the source.
        target_lora: distillation LoRAs that make the target; added to the source if no target is given.
        transferred: files made from the LoRA for the target.
        lora_low: for Wan2.2 with two experts, the LoRA for the low-noise one, if `lora` is for the high-noise one.
            Without it, a file named after an expert (`style_high_noise`) is used with the file beside it that is named
            after the other; any other file is loaded only into the high-noise expert.
        target_lora_low: distillation LoRAs for the low-noise expert, if `target_lora` do not serve both.
        transferred_low: files of `transferred` for the low-noise expert, in the same order; as `lora_low`.
        output: a folder.
        prompts: texts, or a file of them (`loraport.comparing.prompts.read_prompts`); None for the texts beside the
            images.
        images: first images of the clips, for image-to-video: files, or folders of them; one for every prompt in the
            same order, one for all, or several for a single prompt.
        settings: which clips to make, and what to judge by.
        source_sampling: how the source is sampled.
        target_sampling: how the target is sampled; what is known of it is filled in.
        device: auto, cpu, cuda, cuda:1 or mps.
        on_event: called with every event.

    Raises:
        LoraportError: see `loraport.errors`. Clips that are finished stay in the folder.
    """
    check_arguments(compare, locals())
    need_diffusers()
    transferred, transferred_low = as_paths(transferred), as_paths(transferred_low)
    for each in (lora, *transferred):
        lora_file(each)
    asked = read_prompts(prompts, as_paths(images))
    added = (added_loras(target_lora), added_loras(target_lora_low))
    sides = find_sides(source, target, added[0], source_sampling, target_sampling, added[1])
    two = sides["source"].model.two_experts
    loras = find_files(lora, lora_low, transferred, transferred_low, two_experts=two)
    plan = ComparePlan(
        sides=sides,
        loras=loras,
        variants=list_variants(loras[0], loras[1:], settings.strengths, source_alone=settings.source_alone),
        prompts=asked,
        settings=settings,
        weights=settings.weights(),
        folder=Path(output),
    )
    for side in sides.values():
        side.model.pipeline(with_image=plan.with_images)
    loaded = ((variant.role, one) for variant in plan.variants for one in variant.placed)
    for role, file, expert in dict.fromkeys((role, one.file, one.expert) for role, one in loaded):
        check_lora(file, expert, sides[role].model, role)
    plan.weights.check()
    if plan.folder.exists() and not plan.folder.is_dir():
        raise UsageError("the output is a file, not a folder", where=str(output), fix="name another with --output")
    from loraport.comparing.run import carry_out  # loads torch and diffusers, after all refusals

    return carry_out(plan, device, on_event)


def probe(
    *,
    source: PathLike,
    target: PathLike | None = None,
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    target_lora_low: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    output: PathLike,
    colour: str = "red",
    prompt: str = GREY_WALL,
    seed: int = 0,
    settings: CompareSettings = DEFAULTS,
    source_sampling: SamplingSettings = NO_SETTINGS,
    target_sampling: SamplingSettings = NO_SETTINGS,
    device: str = "auto",
    overwrite: bool = False,
    on_event: Listener = ignore,
) -> ProbeReport:
    """Make the probe of a source, and measure how much of it the target shows.

    Args:
        source: diffusers folder of the pipeline, or a hub id.
        target: the same; or a transformer's folder or file, combined with the other parts of the source.
        target_lora: distillation LoRAs that make the target.
        target_lora_low: distillation LoRAs for the low-noise expert of Wan2.2, if `target_lora` do not serve both.
        output: probe to write, a safetensors file; for two experts, the name to which `_high_noise` and `_low_noise`
            are added.
        colour: red, green, blue or light.
        prompt: prompt to render. Models whose videos begin with an image are given a grey one.
        seed: seed of the noise.
        settings: size of the clips, offloading, precision.
        source_sampling: how the source is sampled.
        target_sampling: how the target is sampled.
        device: auto, cpu, cuda, cuda:1 or mps.
        overwrite: replace existing files.
        on_event: called with every event.

    Raises:
        LoraportError: see `loraport.errors`. UnsupportedError: the network's output does not reach the decoder as a
            picture of its own. NumericalError: the source does not show the colour either, or one of two experts makes
            no step.
    """
    check_arguments(probe, locals())
    need_diffusers()
    if colour not in COLOURS:
        raise UsageError("there is no such colour for a probe", values=colour, fix=", ".join(COLOURS))
    added = (added_loras(target_lora), added_loras(target_lora_low))
    sides = find_sides(source, target, added[0], source_sampling, target_sampling, added[1])
    files: dict[Expert, Path] = {"high": Path(output)}
    if sides["source"].model.two_experts:
        files = {expert: named_for(Path(output), expert) for expert in EXPERTS}
    for each in files.values():
        check_output(each, [], overwrite=overwrite)
    from loraport.comparing.probe import measure  # loads torch and diffusers, after all refusals

    return measure(
        sides, files, colour=colour, prompt=prompt, seed=seed, settings=settings, device=device, overwrite=overwrite,
        on_event=on_event,
    )  # fmt: skip
