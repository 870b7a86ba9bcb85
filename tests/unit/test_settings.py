"""Strict loading of settings, and the shipped file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agent.checked_settings import from_mapping
from agent.settings import (
    DeploymentSettings,
    KeyframeSettings,
    ServerSettings,
    ServiceSettings,
    load_serve_config,
    serve_config,
    with_environment,
)
from groundstream.errors import SettingsError

SHIPPED = Path(__file__).parents[2] / "deployments" / "serve_config.yaml"


def test_nested_values_are_built() -> None:
    settings = from_mapping(ServiceSettings, {"model": "x", "server": {"port": 7}})
    assert settings.model == "x"
    assert settings.server == dataclasses.replace(ServerSettings(), port=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, r"unknown key 'modle' in args; did you mean 'model'\?"),
        ({"server": {"prot": 1}}, r"unknown key 'prot' in args.server; did you mean 'port'\?"),
        ({"zzz": 1}, "known keys: access, as_published, cache"),
        ({"server": {"port": "50051"}}, "args.server.port should be a valid integer, not '50051'"),
        ({"server": {"port": True}}, "args.server.port should be a valid integer, not True"),
        ({"server": {"port": 1.5}}, "args.server.port should be a valid integer"),
        ({"cache": {"url": 3}}, "args.cache.url should be a valid string or null, not 3"),
        ({"server": [1]}, "args.server should be a mapping, not list"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_mapping(ServiceSettings, values, "args")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stream": {"follow": {"keyframe": {"busy_share": 0}}}}, "busy_share should be greater"),
        ({"cache": {"ttl_s": -1}}, "args.cache.ttl_s should be greater than 0, not -1"),
        ({"cache": {"ttl_s": float("nan")}}, "args.cache.ttl_s should be greater than 0, not nan"),
        ({"frame": {"max_bytes": 0}}, "max_bytes should be greater than 0, not 0"),
        ({"observe": {"traced_share": 1.5}}, "less than or equal to 1, not 1.5"),
        ({"observe": {"log_format": "xml"}}, "should be 'text' or 'json', not 'xml'"),
        ({"dtype": "int4"}, "args.dtype should be 'auto', .* or 'int8', not 'int4'"),
        ({"num_threads": {"language": 0}}, "greater than or equal to 1, not 0"),
        ({"access": {"quotas": {"acme": {"streams": 0}}}}, "quotas.acme.streams should be greater"),
    ],
)
def test_numbers_out_of_range_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_mapping(ServiceSettings, values, "args")


def test_every_way_to_make_an_object_checks_it() -> None:
    with pytest.raises(SettingsError, match=r"KeyframeSettings\.busy_share should be greater"):
        KeyframeSettings(busy_share=0.0)
    with pytest.raises(SettingsError, match=r"ServerSettings\.port should be less"):
        dataclasses.replace(ServerSettings(), port=70_000)


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
