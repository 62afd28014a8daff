import dynamo.protocols.openai as package


def test_all_is_what_is_exported() -> None:
    modules = {"checks", "decode", "error_body", "messages", "models", "requests", "responses"}
    exported = {name for name in vars(package) if not name.startswith("_")} - modules
    assert sorted(exported | ({"error_body"} & set(package.__all__))) == package.__all__
