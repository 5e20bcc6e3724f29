"""Numbers in sentences: one way to count things and to say a share, for messages, tables and pages."""


def count(number: int, noun: str, verb: str = "") -> str:
    """`1 layer`, `2 layers`, `no layers`; with a verb in both forms, such as "was/were", that one as well."""
    one, _, many = verb.partition("/")
    said = f"{f'{number:,}' if number else 'no'} {noun}{'' if number == 1 else 's'}"
    return f"{said} {one if number == 1 else many}" if verb else said


def share(value: float | int) -> str:
    """A share as a percentage that does not round a loss away: 99.99 %, but 100 % only when nothing is lost."""
    if value >= 1.0:  # norms may be several times those that they are compared with
        return f"{100 * value:.0f} %"
    if 0 < abs(value) < 0.0005:
        return "< 0.1 %"
    digits = 1 if value < 0.99 else 2 if value < 0.999 else 4
    return f"{min(100 * value, 100 - 10**-digits):.{digits}f} %"


def percent(value: float) -> str:
    """A ratio that may be more than one as a percentage of two digits that count: 0.23 %, 14 %, 110 %."""
    shown = 100 * value
    if 0 < shown < 0.001:
        return "< 0.001 %"
    return f"{shown:.0f} %" if shown >= 99.5 else f"{shown:.2g} %"


def size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} bytes"
