"""`dynamo COMMAND`"""

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

_COMMANDS = {
    "serve": ("dynamo.cli.serve", "start a frontend and workers on this host, and keep them running"),
    "run": ("dynamo.cli.run", "chat with a model in the terminal"),
    "config": ("dynamo.cli.config", "look at the settings of running frontends, and change them"),
    "kvbm": ("dynamo.cli.kvbm", "look after the block manager of this host: KV blocks beyond the engines' memory"),
    "keys": ("dynamo.cli.keys", "make a key for the OpenAI API"),
    "simulate": ("dynamo.cli.simulate", "compare routers on a recorded trace, in virtual time"),
    "profile": ("dynamo.cli.profile", "measure how fast an engine is, for the planner"),
    "doctor": ("dynamo.cli.doctor", "say what is installed and whether this host lets it work"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in _COMMANDS:
        module = importlib.import_module(_COMMANDS[command][0])  # only what this command needs
        return int(module.main(arguments[1:]))
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command in ("-V", "--version"):
        print(f"dynamo-py {version('dynamo-py')}")
        return 0
    print(_usage(), file=sys.stderr)
    if command:
        print(f"\ndynamo: there is no command {command!r}", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = [f"  dynamo {name:8} {purpose}" for name, (_, purpose) in _COMMANDS.items()]
    return "\n".join(["usage: dynamo COMMAND ...\n", *lines, "\n`dynamo COMMAND --help` says more."])


if __name__ == "__main__":
    sys.exit(main())
