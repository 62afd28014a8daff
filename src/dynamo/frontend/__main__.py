"""`python -m dynamo.frontend`"""

import sys

from dynamo.frontend.main import main

if __name__ == "__main__":
    sys.exit(main())
