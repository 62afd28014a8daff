"""Whole clusters in virtual time: the real schedulers and the real router, and between them nothing but arithmetic.

A run is a function of its trace, its configuration and its seed.
"""
