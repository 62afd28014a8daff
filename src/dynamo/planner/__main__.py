"""`python -m dynamo.planner`"""

import sys

from dynamo.planner.main import main

if __name__ == "__main__":
    sys.exit(main())
