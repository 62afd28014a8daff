"""`python -m dynamo.mocker`: see dynamo.engines.mocker."""
