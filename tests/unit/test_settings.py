"""Strict loading of settings, and the shipped file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from agent.errors import SettingsError
from agent.settings import (
    DeploymentSettings,
    ServerSettings,
    ServiceSettings,
    from_mapping,
    load_serve_config,
    serve_config,
    with_environment,
)

SHIPPED = Path(__file__).parents[2] / "serve_config.yaml"


def test_nested_values_are_built() -> None:
    settings = from_mapping(ServiceSettings, {"model": "x", "server": {"port": 7}})
    assert settings.model == "x"
    assert settings.server == dataclasses.replace(ServerSettings(), port=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, r"unknown key 'modle' in args; did you mean 'model'\?"),
        ({"server": {"prot": 1}}, r"unknown key 'prot' in args.server; did you mean 'port'\?"),
        ({"zzz": 1}, "known keys: access, cache"),
        ({"server": {"port": "50051"}}, "args.server.port must be int, not '50051'"),
        ({"server": {"port": True}}, "args.server.port must be int, not True"),
        ({"server": {"port": 1.5}}, "args.server.port must be int"),
        ({"cache": {"url": 3}}, "args.cache.url must be str or null, not 3"),
        ({"server": [1]}, "args.server must be a mapping, not list"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_mapping(ServiceSettings, values, "args")


def test_whole_numbers_are_numbers_where_seconds_are_wanted() -> None:
    settings = from_mapping(ServiceSettings, {"cache": {"ttl_s": 3}})
    assert settings.cache.ttl_s == 3.0


def test_a_missing_name_is_named() -> None:
    with pytest.raises(SettingsError, match="name"):
        from_mapping(DeploymentSettings, {"num_replicas": 2}, "deployments[0]")


def test_settings_survive_json() -> None:
    config = load_serve_config(SHIPPED)
    sent = json.loads(
        json.dumps(
            {
                "args": dataclasses.asdict(config.service),
                "deployments": [dataclasses.asdict(entry) for entry in config.deployments],
            }
        )
    )
    assert serve_config(sent["args"], sent["deployments"]) == config


def test_redis_url_comes_from_the_environment() -> None:
    settings = ServiceSettings()
    assert with_environment(settings, {}).cache.url is None
    assert with_environment(settings, {"REDIS_URL": ""}).cache.url is None
    assert with_environment(settings, {"REDIS_URL": "redis://x"}).cache.url == "redis://x"


def test_the_shipped_file_says_every_number() -> None:
    """A number that is only in the code cannot be found by who operates the service."""
    loaded = yaml.safe_load(SHIPPED.read_text())["applications"][0]["args"]
    for field in dataclasses.fields(ServiceSettings):
        if field.name == "stages":
            continue  # Which classes run is not a number.
        assert field.name in loaded
        if dataclasses.is_dataclass(field.type) or isinstance(loaded[field.name], dict):
            section = getattr(ServiceSettings(), field.name)
            assert set(loaded[field.name]) == {f.name for f in dataclasses.fields(section)}


def test_the_shipped_numbers_are_the_defaults() -> None:
    assert load_serve_config(SHIPPED).service == ServiceSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: []", "exactly one entry"),
        ("[1]", "must hold a mapping"),
        ("a: [", "is not YAML"),
        ("aplications: []", "did you mean 'applications'"),
        ("applications: [3]", "must be a mapping"),
        ("applications: [{deployments: 3}]", "must be a list"),
        ("applications: [{deployments: [{name: A, num_cpus: 1}]}]", "unknown key 'num_cpus'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_serve_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*nothing\.yaml"):
        load_serve_config(tmp_path / "nothing.yaml")
