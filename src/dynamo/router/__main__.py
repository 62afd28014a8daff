"""`python -m dynamo.router`: see dynamo.llm.router_service, which is a layer above this package."""

import sys

from dynamo.llm.router_service import main

if __name__ == "__main__":
    sys.exit(main())
