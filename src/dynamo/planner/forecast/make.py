"""A forecaster by its name."""

from dynamo.errors import ConfigError
from dynamo.planner.config import PREDICTORS
from dynamo.planner.forecast.base import Forecaster
from dynamo.planner.forecast.constant import ConstantForecaster
from dynamo.planner.forecast.kalman import KalmanForecaster
from dynamo.planner.forecast.moving_average import MovingAverageForecaster


def make_forecaster(name: str) -> Forecaster:
    """One of PREDICTORS, which has seen nothing yet.

    Raises ConfigError for another name, and saying what to do where the extra is missing that it needs.
    """
    match name:
        case "constant":
            return ConstantForecaster()
        case "moving-average":
            return MovingAverageForecaster()
        case "kalman":
            return KalmanForecaster()
        case "arima" | "seasonal":
            return _fitted(name)
        case other:
            raise ConfigError(f"there is no predictor {other!r}: choose {', '.join(PREDICTORS)}")


def _fitted(name: str) -> Forecaster:
    try:
        from dynamo.planner.forecast.arima import ArimaForecaster  # takes a second
        from dynamo.planner.forecast.seasonal import SeasonalForecaster
    except ImportError as error:
        raise ConfigError(
            f"--predictor {name} needs the {error.name} package: pip install 'dynamo-py[planner]'"
        ) from None
    return ArimaForecaster() if name == "arima" else SeasonalForecaster()
