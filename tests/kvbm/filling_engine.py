"""One process of an engine that fills the slots it was granted, until it is killed."""

import sys
import time
from pathlib import Path

from dynamo.kvbm.client import ServiceClient, map_pool
from tests.kvbm.scripted_service import attach


def main() -> None:
    path, part = Path(sys.argv[1]), sys.argv[2]
    if part == "rank":
        pool = map_pool(path, attach("filling", rank=0), 5.0)
        print("filling", flush=True)
        while True:
            pool.slot(0)[0] = 1
            time.sleep(0.001)
    client = ServiceClient(path, attach("filling"))
    while not client.granted:
        client.poll(1.0)
    print("filling", *client.take_slots(client.granted), flush=True)
    while True:
        client.poll(1.0)


if __name__ == "__main__":
    main()
