"""`python -m dynamo.vllm`: see dynamo.engines.vllm."""
