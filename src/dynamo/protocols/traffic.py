"""What a frontend has been asked for, as it says itself."""

import msgspec

FRONTEND_COMPONENT = "frontend"  # where frontends serve what is asked of them by others than clients
TRAFFIC_ENDPOINT = "traffic"  # of the frontends' component: asked anything, it answers with a list of ModelTraffic


class ModelTraffic(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One model's requests since the frontend's start. All figures only grow: two answers give what was in between."""

    model: str
    uptime_s: float = 0.0  # since that start
    arrived_requests: int = 0  # all that came, among them those refused for lack of room
    finished_requests: int = 0  # without an error
    first_tokens: int = 0  # requests that have got one
    ttft_s: float = 0.0  # the sum over those
    gaps: int = 0  # times between two tokens of one request
    itl_s: float = 0.0  # the sum over those
    prompts: int = 0  # whose length is known
    prompt_tokens: int = 0  # the sum over those
    cached_tokens: int = 0  # of them, that needed no prefill
    output_tokens: int = 0  # of finished requests
