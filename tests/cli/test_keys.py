"""`dynamo keys`"""

from pathlib import Path

import pytest

from dynamo.cli.main import main
from dynamo.frontend.api_keys import KeyEntry, key_digest, read_key_file


def test_new_keys_can_be_appended_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    digests = []
    with path.open("w") as file:
        for flags in (['al"i\\ce é'], ["bob", "--models", "a, b/c", "--requests-per-minute", "5"]):
            assert main(["keys", "new", *flags]) == 0
            out, err = capsys.readouterr()
            file.write(out)
            assert err.strip() not in out
            digests.append(key_digest(err.strip()))
    assert read_key_file(path) == [
        KeyEntry(name='al"i\\ce é', sha256=digests[0]),
        KeyEntry(name="bob", sha256=digests[1], models=["a", "b/c"], requests_per_minute=5),
    ]


@pytest.mark.parametrize(
    "arguments", [[], ["new"], ["old", "x"], ["new", ""], ["new", "a\nb"], ["new", "a", "--concurrent-requests", "0"]]
)
def test_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["keys", *arguments])
    assert ended.value.code == 2
