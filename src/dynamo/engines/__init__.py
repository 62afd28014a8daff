"""Inference engines behind one interface, and the process that serves any of them."""
