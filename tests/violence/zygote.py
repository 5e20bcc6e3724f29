"""Real processes without the wait: one process that has imported everything forks a child for each command.

python zygote.py RATES  has the rates of this machine as JSON, reads one JSON request a line, answers one JSON line each
{"words": [...], "cwd": ..., "env": {...}, "out": file, "err": file, "file_limit": bytes or null}  ->  {"pid": n}
{"wait": pid}  ->  {"status": waitpid status}
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import sys

ROOMS = ("adapters", "cli", "containers", "core", "engine", "methods", "models", "store")


def warm_up() -> None:
    """Import all that a command may need and read the tables, so that a child begins with its work."""
    for room in ROOMS:
        package = importlib.import_module(f"loraport.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"loraport.{room}."):
            importlib.import_module(module.name)
    from loraport.models.families import families
    from loraport.models.keymap import keymap_of

    for family in families().values():
        keymap_of(family)

    from loraport.engine import measuring
    from loraport.engine.rates import Rates

    rates = Rates(**json.loads(sys.argv[1]))  # measured already, since a child would take a second for it
    measuring.measure = lambda device, root: rates


def child(request: dict) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which a suite under nohup ignores
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    if request.get("file_limit") is not None:
        sys.dont_write_bytecode = True  # it would be cut at the limit, and others would import what is left
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    from loraport.cli.main import app

    code = 99
    try:
        app(request["words"], prog_name="loraport")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    warm_up()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": os.waitpid(request["wait"], 0)[1]}
        else:
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
