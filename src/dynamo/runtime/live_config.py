"""Settings that may be changed while processes run: `dynamo config` asks for them, and sets them."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from dynamo.config import Live, as_typed, setting_values
from dynamo.errors import ConfigError, InvalidRequestError
from dynamo.runtime.component import Endpoint

logger = logging.getLogger(__name__)

CONFIG_ENDPOINT = "config"  # of a component whose processes have such settings


class ConfigRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the endpoint is asked; it answers with all settings and their values, as flags would have them."""

    set: dict[str, str] = {}  # by name; all of them are set, or none


async def serve_config(endpoint: Endpoint, live: Live[Any]) -> None:
    """Serves the settings of `live` at `endpoint`, until its runtime shuts down."""

    async def config(request: ConfigRequest) -> AsyncIterator[dict[str, str]]:
        """Raises InvalidRequestError for a setting that there is not, or a value that it cannot have."""
        before = setting_values(live.value)
        try:
            live.change(request.set)
        except ConfigError as error:
            raise InvalidRequestError(str(error), param="set") from error
        values = setting_values(live.value)
        for name, value in values.items():
            if value != before[name]:
                logger.info("%s: %s -> %s", as_typed(name), before[name], value)
        yield values

    await endpoint.start(config, request_type=ConfigRequest)
