import msgspec

from dynamo.errors import AuthenticationError, InternalError, InvalidRequestError, NoInstancesError
from dynamo.protocols.openai import error_body


def test_the_clients_mistake() -> None:
    body = msgspec.to_builtins(error_body(InvalidRequestError("n: too many", param="n")))
    assert body == {
        "error": {"message": "n: too many", "type": "invalid_request_error", "param": "n", "code": "invalid_request"}
    }


def test_the_type_follows_from_who_must_act() -> None:
    assert error_body(AuthenticationError("no")).error.type == "authentication_error"
    assert error_body(InternalError("oh")).error.type == "server_error"
    assert error_body(NoInstancesError("oh")).error.type == "server_error"
