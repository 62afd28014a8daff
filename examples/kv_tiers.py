"""What a prompt costs that the device has forgotten: asks a running server, and times the first token.

    dynamo serve --kvbm-host-gb 1 -- --kv-cache-memory-bytes 100000000     # in another terminal; a small device cache
    python examples/kv_tiers.py

Without --kvbm-host-gb the last line says what it costs to compute the prompt again.
"""

import sys
import time

from openai import OpenAI

WORDS = 1100  # of a prompt; 1,300 tokens or so
OTHERS = 4  # prompts that fill the device's cache


def document(number: int) -> str:
    """Long, and like no other from its first word on."""
    return " ".join(f"{number}-{word}" if word % 9 == 0 else "and so on" for word in range(WORDS // 3))


def ask(client: OpenAI, model: str, text: str) -> tuple[float, int]:
    """Seconds to the first token, and how many tokens of the prompt were cached."""
    began_s = time.perf_counter()
    first_s, cached = 0.0, 0
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"{text}\n\nWhat is this about?"}],
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content and not first_s:
            first_s = time.perf_counter() - began_s
        if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
            cached = chunk.usage.prompt_tokens_details.cached_tokens or 0
    return first_s, cached


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    run = time.time_ns()  # so that no earlier run has had these prompts

    def show(what: str, number: int) -> None:
        seconds, cached = ask(client, model, f"{run + number} {document(number)}")
        print(f"{what:40} {seconds:7.3f} s to the first token, {cached} tokens cached")

    ask(client, model, "Hello")  # the very first request takes longer
    show("never seen", 0)
    show("on the device", 0)
    for number in range(1, OTHERS + 1):
        show("another one", number)
    show("the first one, forgotten by the device", 0)


if __name__ == "__main__":
    main()
