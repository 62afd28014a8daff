"""Log lines on stderr, as text or JSON.

DYN_LOG takes a level (trace, debug, info, warn, error, off), or as upstream a comma-separated list with levels for
single modules: "info,dynamo.router=debug". DYN_LOGGING_JSONL=1 writes JSON lines.
"""

import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}


def configure(environ: Mapping[str, str] | None = None) -> None:
    """Sets up the logs of this process; what DYN_LOG says wrongly is warned about and ignored."""
    environ = os.environ if environ is None else environ
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if environ.get("DYN_LOGGING_JSONL") in ("1", "true") else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("dynamo").setLevel(logging.INFO)
    for part in filter(None, environ.get("DYN_LOG", "").split(",")):
        name, _, level = part.rpartition("=")
        if level.lower() in _LEVELS:
            logging.getLogger(name.replace("::", ".") or "dynamo").setLevel(_LEVELS[level.lower()])
        else:
            logging.getLogger(__name__).warning("DYN_LOG: %r is not a level", part)


def leave_out_origins() -> None:
    """Gathers no source file, thread or process for a line, which no line shows: a third of what it costs.

    For processes that log each request, and in which all lines are ours.
    """
    logging._srcfile = None  # as the logging HOWTO recommends
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{_timestamp(record)} {record.levelname:7} {record.name}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname,
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
