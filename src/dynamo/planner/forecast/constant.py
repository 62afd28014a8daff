"""As it was, so it will be."""


class ConstantForecaster:
    """The last interval's value. What the others fall back on while they have seen too little."""

    def __init__(self) -> None:
        self._last = 0.0

    def observe(self, value: float) -> None:
        self._last = value

    def forecast(self, steps: int = 1) -> float:
        return self._last
