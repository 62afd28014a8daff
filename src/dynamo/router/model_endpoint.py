"""Endpoints that routers serve beside a model's workers."""

from hashlib import sha256

from dynamo.runtime.instance import EndpointId


def model_endpoint(workers: EndpointId, role: str, model: str) -> EndpointId:
    """Where those who know the workers' endpoint find what has that role for `model`, apart from other models'."""
    slug = sha256(model.encode()).hexdigest()[:16]  # a name may hold any character
    return workers.beside(f"{workers.name}_{role}_{slug}")
