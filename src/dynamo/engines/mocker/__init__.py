"""A simulated engine: continuous batching over a paged KV cache, in simulated time, without a model.

The core (block_pool, sampler, scheduler, sequence, timing) is pure: it takes requests and gives outputs and durations.
The shell (engine, mailbox, pacing) lets those durations pass.
"""
