"""How long a step of the simulated engine takes."""

from dataclasses import dataclass

from dynamo.errors import ConfigError

Polynomial = tuple[float, float, float]  # coefficients of x², x and 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingModel:
    """Polynomials for prefill and decode; a step that does both takes the sum.

    The defaults are the figures that upstream publishes for its simulated engine.
    """

    speedup_ratio: float = 1.0  # a step takes 1/speedup_ratio of its time; 0: no time at all
    prefill_ms: Polynomial = (4.209989e-07, 1.518344e-02, 16.5)  # of the new tokens in the step
    decode_ms: Polynomial = (-25.74, 54.01, 5.74)  # of the share of KV blocks in use

    def __post_init__(self) -> None:
        """Raises ConfigError when speedup_ratio is negative or not a number."""
        if not 0 <= self.speedup_ratio < float("inf"):
            raise ConfigError(f"the speedup ratio must be a number of at least 0, not {self.speedup_ratio}")

    def step_s(self, *, new_tokens: int, decoding: bool, usage: float) -> float:
        """Seconds for a step that prefills `new_tokens` and decodes or not, with the share `usage` of blocks in use."""
        if self.speedup_ratio == 0:
            return 0.0
        step_ms = _value(self.prefill_ms, new_tokens) if new_tokens else 0.0
        if decoding:
            step_ms += _value(self.decode_ms, usage)
        return step_ms / 1000 / self.speedup_ratio


def _value(polynomial: Polynomial, x: float) -> float:
    square, linear, constant = polynomial
    return (square * x + linear) * x + constant
