import sys

from dynamo.kvbm.service import main

if __name__ == "__main__":
    sys.exit(main())
