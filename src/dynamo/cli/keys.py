"""`dynamo keys new NAME`: makes a key for the OpenAI API."""

import argparse
import sys
from collections.abc import Sequence

from dynamo.frontend.api_keys import key_digest, new_key

PROG = "dynamo keys"
_DESCRIPTION = """\
Make a key for the OpenAI API. The key itself goes to stderr, once: nobody can find it out again. Its entry for
--api-keys-file goes to stdout, as in: dynamo keys new NAME >> keys.toml
"""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=PROG, description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("action", choices=("new",))
    parser.add_argument("name", metavar="NAME", type=_name, help="of the client, for people and for logs")
    parser.add_argument("--requests-per-minute", type=_positive, metavar="N", help="on the long run, and at once")
    parser.add_argument("--concurrent-requests", type=_positive, metavar="N", help="running at a time")
    parser.add_argument("--models", type=_names, metavar="NAME,…", help="the only models that are there for it")
    arguments = parser.parse_args(argv)
    key = new_key()
    fields = {
        "name": _quoted(arguments.name),
        "sha256": _quoted(key_digest(key)),
        "requests_per_minute": arguments.requests_per_minute,
        "concurrent_requests": arguments.concurrent_requests,
        "models": arguments.models and f"[{', '.join(map(_quoted, arguments.models))}]",
    }
    print(key, file=sys.stderr)
    print("\n[[keys]]")
    for field, value in fields.items():
        if value is not None:
            print(f"{field} = {value}")
    return 0


def _quoted(text: str) -> str:
    """TOML's basic string: of what is printable, it has to escape no more than this."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError("a name is printable and not empty")
    return text


def _names(text: str) -> list[str]:
    return [_name(part.strip()) for part in text.split(",")]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
