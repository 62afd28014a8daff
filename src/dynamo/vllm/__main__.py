import sys

from dynamo.engines.vllm.main import main

if __name__ == "__main__":
    sys.exit(main())
