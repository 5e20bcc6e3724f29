"""What a shell is told so that it asks the program at a TAB.

typer's own lines for bash, zsh and fish know no `--flag=value`, those for zsh do nothing at the first TAB of a session,
and those for fish call the program twice. Of PowerShell they are kept.
"""

from typing import Any

import typer

from loraport.errors import UsageError

_PROGRAM = "loraport"
_ASKED = "_LORAPORT_COMPLETE"
"""Variable of the environment in which a shell that asks says how."""

_BASH = """\
_loraport_completion() {
    local IFS=$'\\n' at=$COMP_CWORD words=() i
    for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
        if [[ ${COMP_WORDS[i]} == '=' && i -gt 0 ]]; then  # of --flag=value
            ((i < COMP_CWORD && at--))
        else
            words+=("${COMP_WORDS[i]}")
        fi
    done
    COMPREPLY=( $(env COMP_WORDS="${words[*]}" COMP_CWORD=$at _LORAPORT_COMPLETE=complete_bash "$1") )
}

complete -o default -F _loraport_completion loraport
"""
_ZSH = """\
#compdef loraport

_loraport_completion() {
  [[ $PREFIX == --*=* ]] && compset -P '*='
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _LORAPORT_COMPLETE=complete_zsh loraport)
}

if [[ $funcstack[1] == _loraport ]]; then  # loaded by compinit from a file of this name
  _loraport_completion "$@"
else
  compdef _loraport_completion loraport
fi
"""
_FISH = """\
function __loraport_ask
    set -g __loraport_told (env _LORAPORT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \\
        _TYPER_COMPLETE_ARGS=(commandline -cp) loraport)
    test -n "$__loraport_told"
end

function __loraport_tell
    set -l flag (string match -r -- '^--[^=]+=' (commandline -ct))
    for each in $__loraport_told
        echo "$flag$each"
    end
end

complete --command loraport --no-files --condition __loraport_ask --arguments '(__loraport_tell)'
"""
_LINES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def taught(options: list[Any]) -> list[Any]:
    """The options of the program as typer makes them, the two for completion with the lines of here."""
    for each in options:
        each.callback = {"--install-completion": _install, "--show-completion": _show}.get(each.opts[0], each.callback)
    return options


def _install(context: Any, option: Any, wanted: bool | None) -> bool | None:
    if wanted and not context.resilient_parsing:
        from typer.completion import install

        name = _shell()
        _, path = install(shell=name, prog_name=_PROGRAM)
        if name in _LINES:
            path.write_text(_LINES[name], encoding="utf-8")
        print(f"{name} completes {_PROGRAM} in every terminal that is opened from now on: {path}")
        raise typer.Exit
    return wanted


def _show(context: Any, option: Any, wanted: bool | None) -> bool | None:
    if wanted and not context.resilient_parsing:
        from typer.completion import get_completion_script

        name = _shell()
        theirs = get_completion_script(prog_name=_PROGRAM, complete_var=_ASKED, shell=name)
        print(_LINES.get(name, theirs).rstrip())
        raise typer.Exit
    return wanted


def _shell() -> str:
    """The shell that the program was started from. Raises UsageError if nothing can be completed in it."""
    import shellingham

    try:
        name: str = shellingham.detect_shell()[0]
    except (shellingham.ShellDetectionFailure, RuntimeError):
        name = "none that is known"
    if name not in (*_LINES, "powershell", "pwsh"):
        raise UsageError(
            "nothing can be completed in this shell", values=name, fix="run it in bash, zsh, fish or PowerShell"
        )
    return name
