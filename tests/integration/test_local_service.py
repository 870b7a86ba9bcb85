"""A service that cannot start, or is ended while it does, leaves no trace; real processes."""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from agent.errors import CheckpointMismatch
from agent.settings import CacheSettings, load_serve_config
from deployments.app import bind
from deployments.local.supervisor import LocalService
from groundstream.errors import SettingsError
from tests.integration.conftest import ROOT, fake_config
from tests.integration.serving_process import serving_process


def test_ended_while_it_starts_it_leaves_no_process_and_no_file(
    empty_model: Path, tmp_path: Path
) -> None:
    with serving_process(empty_model, tmp_path) as serving:
        serving.wait_until_it_says("starting on")
        time.sleep(6.0)  # Ray is half up.
        serving.end(signal.SIGTERM)


def test_a_taken_port_is_refused_at_once(empty_model: Path) -> None:
    config = fake_config(empty_model, CacheSettings())
    with socket.socket() as other:
        other.bind(("127.0.0.1", config.service.server.port))
        other.listen()
        service = LocalService(config)
        with pytest.raises(SettingsError, match="--port"):
            service.start()
        service.stop()


def test_a_model_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    service = LocalService(fake_config(tmp_path / "nothing", CacheSettings()))
    with pytest.raises(CheckpointMismatch, match="nothing"):
        service.start()
    service.stop()


def test_the_shipped_file_is_a_serve_config() -> None:
    path = ROOT / "deployments" / "serve_config.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = schema.applications
    assert application.import_path == "deployments.app:build"
    config = load_serve_config(path)
    names = [deployment.name for deployment in application.deployments]
    assert names == ["Ingress", "Proposal", "PrimaryEncoder", "AuxiliaryEncoder", "Language"]
    bind(config.service, config.deployments)


def test_numbers_for_an_unknown_deployment_are_refused() -> None:
    config = load_serve_config(ROOT / "deployments" / "serve_config.yaml")
    stray = dataclasses.replace(config.deployments[0], name="Nobody")
    with pytest.raises(SettingsError, match="Nobody"):
        bind(config.service, [*config.deployments, stray])
