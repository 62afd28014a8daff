"""How calls to HTTP APIs fail that go by httpx2, which is an extra's."""

import httpx2

# What breaks a connection; an OSError is a TLS alert, such as that our certificate is not accepted.
BROKEN = (httpx2.RequestError, OSError)


def failure_reason(error: Exception) -> str:
    """Of one of BROKEN, for people: many say nothing of themselves."""
    return str(error) or ("no answer" if isinstance(error, httpx2.TimeoutException) else type(error).__name__)
