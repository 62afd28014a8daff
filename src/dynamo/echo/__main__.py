import sys

from dynamo.engines.echo import main

if __name__ == "__main__":
    sys.exit(main())
