"""Linear least squares whose memory and time do not grow."""

from collections.abc import Sequence

_FORGET = 0.998  # of the past, per sample: half after 350
_RIDGE = 1e-6  # of a column's own sum of squares: what cannot be told apart shares evenly
_ROUNDS = 2000
_PRECISE = 1e-10


class LeastSquares:
    """Costs of at least 0 for which `sum(amount * cost)` comes nearest to 1, over all samples.

    A sample is what was done per second of time spent on it: so a relative error counts alike, whatever the time was.
    By coordinate descent on the normal equations (Franc, Hlavac, Navara 2005), from where the last solution was.
    """

    def __init__(self, size: int) -> None:
        self._squares = [[0.0] * size for _ in range(size)]
        self._sums = [0.0] * size
        self._costs = [0.0] * size

    def add(self, amounts: Sequence[float]) -> None:
        for row, amount in enumerate(amounts):
            self._sums[row] = _FORGET * self._sums[row] + amount
            line = self._squares[row]
            for column, other in enumerate(amounts):
                line[column] = _FORGET * line[column] + amount * other

    def solve(self) -> Sequence[float]:
        """The costs; 0 for what was never seen."""
        scales = [self._squares[i][i] ** 0.5 for i in range(len(self._sums))]
        seen = [i for i, scale in enumerate(scales) if scale > 0]
        matrix = {i: {j: self._squares[i][j] / scales[i] / scales[j] for j in seen} for i in seen}
        wanted = {i: self._sums[i] / scales[i] for i in seen}
        shares = {i: self._costs[i] * scales[i] for i in seen}
        for _ in range(_ROUNDS):
            moved = 0.0
            for i in seen:
                rest = wanted[i] - sum(matrix[i][j] * shares[j] for j in seen if j != i)
                share = max(0.0, rest / (1.0 + _RIDGE))
                moved = max(moved, abs(share - shares[i]))
                shares[i] = share
            if moved <= _PRECISE * max(wanted.values(), default=0.0):
                break
        for i in seen:
            self._costs[i] = shares[i] / scales[i]
        return list(self._costs)
