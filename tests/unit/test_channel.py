"""How the client connects; who is let in with what is in `test_access.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import build_app
from groundstream.channel import TlsOptions, find_token, open_channel
from groundstream.errors import SettingsError


async def test_no_token_travels_to_another_machine_in_plain_text() -> None:
    with pytest.raises(SettingsError, match="plain text"):
        open_channel("example.org:50051", token="secret")


@pytest.mark.parametrize(
    ("target", "tls", "token"),
    [
        ("127.0.0.1\udcff:1", None, None),
        ("127.0.0.1:1", TlsOptions(server_name="a\udcff"), None),
        ("127.0.0.1:1", None, "secret\udcff"),
    ],
)
async def test_what_is_no_text_is_refused_and_no_token_shown(
    target: str, tls: TlsOptions | None, token: str | None
) -> None:
    with pytest.raises(SettingsError, match=r"contains '\\udcff', which is no char") as raised:
        open_channel(target, tls=tls, token=token)
    assert "secret" not in str(raised.value)


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.pem"):
        open_channel("127.0.0.1:1", tls=TlsOptions(root_certificates=tmp_path / "nowhere.pem"))


async def test_a_channel_shows_no_token() -> None:
    channel = open_channel("127.0.0.1:1", token="hidden")
    assert "hidden" not in repr(vars(channel))
    await channel.close()


def test_tokens_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GROUNDSTREAM_TOKEN", raising=False)
    assert find_token(None) is None
    monkeypatch.setenv("GROUNDSTREAM_TOKEN", "from the environment")
    assert find_token(None) == "from the environment"
    path = tmp_path / "token"
    path.write_text("from a file\n")
    assert find_token(path) == "from a file"
    path.write_text("\n")
    with pytest.raises(SettingsError, match="holds no token"):
        find_token(path)


@pytest.mark.parametrize("command", ["watch", "serve", "key"])
def test_no_command_takes_a_secret_as_an_argument(command: str) -> None:
    options = CliRunner().invoke(build_app(), [command, "--help"]).stdout.split()
    secrets = {"--token", "--key", "--api-key", "--password", "--secret"}
    assert not secrets & set(options)
