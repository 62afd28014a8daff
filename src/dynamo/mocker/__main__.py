import sys

from dynamo.engines.mocker.main import main

if __name__ == "__main__":
    sys.exit(main())
