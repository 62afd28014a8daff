"""The project's own benchmark, run by scripts/bench; docs/performance.md says what the figures mean."""
