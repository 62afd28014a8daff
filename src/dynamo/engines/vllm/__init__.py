"""vLLM behind the engine interface: its AsyncLLM runs in the worker's process, its engine in processes of its own.

Only `engine`, `failures` and `stats` import vLLM when they are imported; the rest is light.
"""
