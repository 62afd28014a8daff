"""`python -m dynamo.echo`: see dynamo.engines.echo."""
