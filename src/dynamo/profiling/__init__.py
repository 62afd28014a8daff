"""Measures how fast an engine is, over the OpenAI API: `dynamo profile`."""
