"""What a caller sees of a handler's mistakes, and of its own.

python examples/errors.py server &
python examples/errors.py client
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from dynamo.errors import DeadlineExceededError, DynamoError, HandlerError, InvalidRequestError, NoInstancesError
from dynamo.runtime import Client, Context, DistributedRuntime, dynamo_worker

PATH = "errors.divider.divide"


async def divide(request: dict[str, float]) -> AsyncIterator[float]:
    """Divides `a` by `b`, after a pause of `delay_s`."""
    if "a" not in request:
        raise InvalidRequestError("there is nothing to divide", param="a")
    await asyncio.sleep(request.get("delay_s", 0))
    yield request["a"] / request["b"]


async def ask(client: Client, request: dict[str, float], context: Context | None = None) -> None:
    try:
        async for item in await client.generate(request, annotated=False, context=context):
            print("answer:", item)
    except InvalidRequestError as error:  # an error of dynamo.errors arrives as itself
        print(f"my mistake, in {error.param}: {error}")
    except HandlerError as error:  # any other exception by its name and message
        print(f"the handler's mistake, {error.error_type}: {error}")
    except DeadlineExceededError:
        print("too late")
    except NoInstancesError:
        print("nobody is there")
    except DynamoError as error:  # a lost connection, for instance
        print(f"{error.code}: {error}", "(worth another try)" if error.retryable else "")


@dynamo_worker()
async def server(runtime: DistributedRuntime) -> None:
    await runtime.endpoint(PATH).serve_endpoint(divide)


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    nobody = await runtime.endpoint("errors.divider.nobody").client()
    await ask(nobody, {})

    client = await runtime.endpoint(PATH).client()
    await client.wait_for_instances()
    await ask(client, {"a": 1, "b": 2})
    await ask(client, {"b": 2})
    await ask(client, {"a": 1, "b": 0})
    await ask(client, {"a": 1, "b": 2, "delay_s": 60}, Context(deadline_s=time.monotonic() + 0.1))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server"]:
            asyncio.run(server())
        case ["client"]:
            asyncio.run(main())
        case _:
            sys.exit(__doc__)
