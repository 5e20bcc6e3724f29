"""What a TAB in the shell completes: the names that an option takes. Files are completed by the shell itself.

The shell calls the program at each TAB, so that only what knows the names is loaded, and nothing is said when it fails.
"""

import contextlib
import shlex
from collections.abc import Callable, Iterable, Sequence

from loraport.errors import LoraportError

Names = list[tuple[str, str]]
"""Each with what it means, which some shells show; "" where there is nothing to say."""


def completion_of(flag: str, words: Sequence[str] = ()) -> Callable[[], Names] | None:
    """What completes the value of an option, for typer, which picks those that begin with what was typed.

    Args:
        flag: the option.
        words: that its value can be; none for those that are known for the option.

    Returns:
        What finds them; None where a file, a number or any text can stand.
    """
    if not words and flag not in _NAMES:
        return None

    def names() -> Names:
        with contextlib.suppress(LoraportError):  # in the middle of a line nobody wants to hear of it
            return [each for each in _plain(words) or _NAMES[flag]() if shlex.quote(each[0]) == each[0]]
        return []

    return names


def _plain(names: Iterable[str]) -> Names:
    return [(name, "") for name in names]


def _methods() -> Names:
    from loraport.api import list_methods

    return list(list_methods().items())


def _presets() -> Names:
    from loraport.methods import registry

    return [(name, preset.summary) for name, preset in registry.presets().items()]


def _profiles() -> Names:
    from loraport.adapters.dialect import PROFILE_NAMES

    return _plain(PROFILE_NAMES)


def _architectures() -> Names:
    from loraport.models.families import families

    return [*((name, family.title) for name, family in families().items()), ("any", "one that is not known")]


def _programs() -> Names:
    from loraport.adapters.consumers import consumers

    return _plain(dict.fromkeys(title for row in consumers() for title in (row.program, *row.also)))


def _executors() -> Names:
    from loraport.engine.executors import NAMES

    return _plain(NAMES)


_NAMES: dict[str, Callable[[], Names]] = {
    "--method": _methods,
    "--preset": _presets,
    "--to": _profiles,
    "--architecture": _architectures,
    "--for": _programs,
    "--executor": _executors,
}
