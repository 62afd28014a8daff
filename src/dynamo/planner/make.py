"""A planner as its options say."""

from functools import partial

from dynamo.planner.config import PlannerOptions
from dynamo.planner.forecast.make import make_forecaster
from dynamo.planner.interpolated import InterpolatedModel
from dynamo.planner.learned import LearnedModel
from dynamo.planner.profile import Profile
from dynamo.planner.state_machine import Planner


def make_planner(options: PlannerOptions, profile: Profile | None, *, converts: bool) -> Planner:
    """With a profile it knows how fast workers are; without, it learns.

    `converts`: the connector carries out Convert. Raises ConfigError for a budget that is too small, and for a
    predictor whose library is missing.
    """
    forecaster = partial(make_forecaster, options.predictor)
    if profile is not None:
        return Planner(options, InterpolatedModel(profile), forecaster, converts=converts)
    learned = LearnedModel()
    return Planner(options, learned, forecaster, converts=converts, learn=learned.observe)
