"""What a user is told about the programs that may load a file: how to load it, and what would be missing there."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from loraport.adapters.consumers import ALL, PARTS, Consumer, Content, Outcome, consumers, filled, writable
from loraport.adapters.dialect import SAME_AS_INPUT
from loraport.containers.names import Expert

WAYS = 2  # programs of which it is said how they load a file
NAMED = 3  # programs that a sentence names before it counts the rest
UNIVERSAL = "universal"  # the profile that promises everybody
LONG = 160  # characters; a longer list of what is left out is for `verify`

IN_FULL, IN_PART, WRONGLY = "taken in full by", "taken in part by", "taken wrongly by"
REFUSED, UNREAD = "refused by", "not read by"
_Losses = Mapping[Consumer, Mapping[str, Outcome]]


def loader_notes(content: Content) -> tuple[str, ...]:
    """A few sentences: what the common programs leave out, what the others do, and what nobody takes.

    Args:
        content: what is in the file.
    """
    readers = {consumer: content.losses(consumer) for consumer in consumers() if content.reads(consumer)}
    lost_by_all = [part for part in content.parts if readers and all(part in lost for lost in readers.values())]
    notes = []
    if content.profile == UNIVERSAL or not any(consumer.common for consumer in readers):
        known = [consumer for consumer in consumers() if consumer.common and content.reading(consumer)]
        strangers = [_stranger(consumer, content) for consumer in known if not content.reads(consumer)]
        notes += [f"a file of the {content.profile} profile is not read by {_and(strangers)}"] if strangers else []
    notes += [_common(consumer, content, lost_by_all) for consumer in readers if consumer.common]
    notes.append(_others({c: lost for c, lost in readers.items() if not c.common}, lost_by_all))
    notes += [_nobody(part, content) for part in lost_by_all]
    if content.mixed_ranks and any(consumer.program == "diffusers" for consumer in readers):
        notes.append(
            "the ranks differ from layer to layer, and diffusers before 0.40 scales all but one of them wrongly; "
            "loraport resize --rank N makes them equal"
        )
    return tuple(note for note in notes if note)


def ways_to_load(
    path: str | Path, content: Content, *, expert: Expert | None = None, strength: float = 1.0
) -> list[str]:
    """What to type or click to use a file, in the first programs that take it.

    Args:
        path: the file.
        content: what is in it.
        expert: of Wan2.2 that it is for, if one was named.
        strength: of the LoRA; another than 1 only in programs of which it is known how to say it.
    """
    ways: dict[str, str] = {}
    for consumer in consumers():
        reading = content.reading(consumer)
        if reading is None or not content.reads(consumer) or _unfit(content.losses(consumer)):
            continue
        load = reading.load
        if expert is not None:
            second = load.replace(
                "load_lora_weights({path})", "load_lora_weights({path}, load_into_transformer_2=True)"
            )
            inside = "load_lora_weights({path})" in load  # one pipeline that holds both
            load = (second if expert == "low" else load) if inside else f"{load} (with the {expert}-noise model)"
        load = _at_strength(load, strength)
        if not load:
            continue
        ways.setdefault(consumer.program, f"{consumer.program}: {filled(load, Path(path))}")
    reads = "loads the input" if content.as_input else f"reads the {content.profile} profile"
    return list(ways.values())[:WAYS] or [f"with any program that {reads}, at strength {_number(strength)}"]


def takers(content: Content) -> list[tuple[str, str]]:
    """Who takes how much of a file, the best first: (how much, names of the programs with what is missing there).

    Args:
        content: what is in the file.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for consumer in consumers():
        row = content.row(consumer)
        if row is None:
            continue
        losses = content.losses(consumer)
        refused, wrong, lost = _by_outcome(losses)
        without = f"without {_parts(lost)}" if lost else ""
        if not content.reads(consumer) and not refused:
            everything = row[ALL]
            unread = (IN_PART, f" ({everything.remark})") if everything.arrives else (UNREAD, "")
            said = (REFUSED, "") if everything.refused else unread
        elif content.unknown(consumer):
            continue
        elif refused:
            said = REFUSED, f" (because of {_parts(refused)})"
        elif wrong:
            said = WRONGLY, f" (in {_parts(wrong)}{without and '; '}{without})"
        else:
            said = (IN_PART, f" ({without})") if lost else (IN_FULL, "")
        found.setdefault(said, []).append(consumer.name)
    order = (IN_FULL, IN_PART, WRONGLY, REFUSED, UNREAD)
    rows = sorted(found.items(), key=lambda item: order.index(item[0][0]))
    return [(title, ", ".join(names) + detail) for (title, detail), names in rows]


def _at_strength(load: str, strength: float) -> str:
    """A way to load at another strength than 1; "" where it is not known how that is said."""
    if strength == 1.0:
        return load
    if "strength 1.0" in load:
        return load.replace("strength 1.0", f"strength {_number(strength)}")
    if load == "pipe.load_lora_weights({path})":
        set_it = f'pipe.set_adapters("lora", {_number(strength)})'
        return f'pipe.load_lora_weights({{path}}, adapter_name="lora"); {set_it}'
    return ""


def _number(strength: float) -> str:
    return f"{strength:g}" if strength != int(strength) else f"{strength:.1f}"


def _refused(losses: Mapping[str, Outcome]) -> bool:
    return any(outcome.refused for outcome in losses.values())


def _unfit(losses: Mapping[str, Outcome]) -> bool:
    """Whether a program refuses the file, or changes the model otherwise than it is meant."""
    return any(outcome.refused or outcome.wrong for outcome in losses.values())


def _by_outcome(losses: Mapping[str, Outcome]) -> tuple[list[str], list[str], list[str]]:
    """The parts for which the file is refused, those that are applied wrongly, those that are left out."""
    refused = [part for part, outcome in losses.items() if outcome.refused]
    wrong = [part for part, outcome in losses.items() if outcome.wrong]
    return refused, wrong, [part for part in losses if part not in (*refused, *wrong)]


def _common(consumer: Consumer, content: Content, known: Sequence[str]) -> str:
    """What a common program makes of a file that it does not take in full; what everybody leaves out aside."""
    losses = content.losses(consumer)
    refused, wrong, lost = _by_outcome(losses)
    other = _other_profile(consumer, content) if refused or wrong else ""
    if refused:
        way = f"; with --to {other} it does" if other else ""
        return f"{consumer.name} does not load the file, because of {_parts(refused)}{way}"
    said = []
    if lost := [part for part in lost if part not in known]:
        said.append(f"{consumer.name} leaves out {_parts(lost)}")
    if wrong:
        how = "; ".join(losses[part].remark for part in wrong)
        said.append(f"{consumer.name} applies {_parts(wrong)} wrongly ({how})")
        said += [f"with --to {other} it does not"] if other else []
    return "; ".join(said)


def _other_profile(consumer: Consumer, content: Content) -> str:
    """Another profile in which a program would load the file rightly; "" if there is none."""
    for profile, row in consumer.families[content.family].profiles.items():
        loads = profile != SAME_AS_INPUT and ALL not in row and not _unfit(content.losses_in(row))
        if loads and all(writable(profile, part) for part in content.parts):
            return profile
    return ""


def _stranger(consumer: Consumer, content: Content) -> str:
    other = _other_profile(consumer, content)
    return f"{consumer.name} (--to {other} is read)" if other else consumer.name


def _others(losses: _Losses, known: Sequence[str]) -> str:
    """What the other programs leave out, in one sentence."""
    refused = [consumer.name for consumer, lost in losses.items() if _refused(lost)]
    together: dict[tuple[str, ...], list[str]] = {}  # parts left out -> programs
    for consumer, lost in losses.items():
        parts = tuple(part for part in lost if part not in known)
        if parts and not _refused(lost):
            together.setdefault(parts, []).append(consumer.name)
    said = [f"{_parts(parts)} are left out by {_and(names)}" for parts, names in together.items()]
    counted = len(refused) > NAMED or any(len(names) > NAMED for names in together.values())
    if len("; ".join(said)) > LONG:
        said, counted = [f"parts of it are left out by {_and([n for names in together.values() for n in names])}"], True
    if refused:
        said.append(f"the whole file is refused by {_and(refused)}")
    return "; ".join(said) + (" (loraport verify lists them all)" if counted else "")


def _nobody(part: str, content: Content) -> str:
    """A part that no program takes from this file, and where else it would arrive."""
    said = f"no program applies the {PARTS[part]} from this file"
    for consumer in consumers():
        reading = consumer.families.get(content.family)
        for profile, row in reading.profiles.items() if reading else ():
            if profile != SAME_AS_INPUT and not {part, ALL} & row.keys() and writable(profile, part):
                return f"{said}; {consumer.program} does with --to {profile}, and --drop leaves it out"
    return f"{said}; --drop leaves it out"


def _parts(parts: Iterable[str]) -> str:
    wanted = set(parts)
    return _and([title for part, title in PARTS.items() if part in wanted], limit=len(PARTS))


def _and(names: Sequence[str], limit: int = NAMED) -> str:
    """Names as people list them; those beyond the limit are counted."""
    shown = list(names[:limit])
    if len(names) > limit:
        shown.append(f"{len(names) - limit} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
