"""What every request plane must do.

    @pytest.mark.parametrize("case", CASES)
    async def test_my_plane(case):
        await case(MyPlane())

A case is given a plane that can listen, and connect to where it listens.
"""

from dynamo.testing.request_plane.suite import CASES, Case

__all__ = ["CASES", "Case"]
