"""A framework that serves large language models on many workers and many machines."""
