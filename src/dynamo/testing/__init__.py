"""For tests of programs that use this package, and of backends that one writes for it.

`dynamo.testing.discovery` and `dynamo.testing.request_plane` hold the suites that every discovery backend and every
request plane must pass.
"""

from dynamo.testing.program import Program, program
from dynamo.testing.strict import run_strictly
from dynamo.testing.waiting import eventually, within

__all__ = ["Program", "eventually", "program", "run_strictly", "within"]
