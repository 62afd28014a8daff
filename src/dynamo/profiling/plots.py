"""A profile as a picture. The only module here that needs matplotlib (extra `plot`)."""

from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from dynamo.planner.profile import Profile

_INCHES = (11.0, 7.5)
_DPI = 110


def draw_profile(profile: Profile, path: Path) -> None:
    """TTFT and prefill throughput over the prompt's length; ITL and decode throughput over the concurrency."""
    mpl.use("Agg")  # no display
    figure, ((ttft, prefill), (itl, decode)) = pyplot.subplots(2, 2, figsize=_INCHES, layout="constrained")
    figure.suptitle(f"{profile.model} on {profile.engine}")
    lengths = [point.prompt_tokens for point in profile.prefill]
    ttft.plot(lengths, [1000 * point.ttft_s for point in profile.prefill], marker="o")
    ttft.set(title="TTFT of one prompt, ms", xlabel="prompt tokens")
    prefill.plot(lengths, [point.tokens_per_s for point in profile.prefill], marker="o")
    prefill.set(title="prefill, tokens/s", xlabel="prompt tokens")
    for context, group in groupby(profile.decode, lambda point: point.context_tokens):
        points = list(group)
        requests = [point.concurrency for point in points]
        itl.plot(requests, [1000 * point.itl_s for point in points], marker="o", label=f"context {context}")
        decode.plot(requests, [point.tokens_per_s for point in points], marker="o")
    itl.set(title="ITL, ms", xlabel="requests at once")
    decode.set(title="decode, tokens/s", xlabel="requests at once")
    itl.legend()
    for axis in (ttft, prefill, itl, decode):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
