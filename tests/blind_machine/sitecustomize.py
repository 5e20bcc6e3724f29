"""For the processes of a machine that does not see a folder: whatever looks into it is told that there is nothing.

Python imports this by itself where this folder is on `PYTHONPATH`; `HIDDEN_FOLDER` names what is not to be seen.
"""

import errno
import os
import sys

HIDDEN = os.environ.get("HIDDEN_FOLDER")


def _refuse(path: object) -> None:
    if HIDDEN and isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(HIDDEN + os.sep):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))


def _audit(event: str, arguments: tuple) -> None:
    if event == "open":
        _refuse(arguments[0])


def _stat(path, *more, real=os.stat, **named):
    _refuse(path)
    return real(path, *more, **named)


if HIDDEN:
    sys.addaudithook(_audit)
    os.stat = _stat
