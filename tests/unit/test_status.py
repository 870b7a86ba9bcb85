"""Errors to gRPC: every client-caused error has a status, everything else says nothing."""

from __future__ import annotations

import logging
import pickle

import grpc
import grpc.aio
import pytest
import ray.serve.exceptions
from ray.serve._private.common import DeploymentID

from deployments.wire import status
from groundstream import errors

NOT_FROM_CLIENTS = {
    "CheckpointMismatch",
    "ModelNotFetched",
    "SettingsError",
    "EventsError",
    "SourceError",
}


def test_every_error_a_client_can_cause_is_in_the_table() -> None:
    leaves = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AgentError)
    } - {"AgentError"}
    coded = errors.errors_by_code()
    assert {kind.__name__ for kind in coded.values()} == leaves - NOT_FROM_CLIENTS
    assert set(coded) == set(status.STATUS_BY_CODE)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (errors.InvalidFrame("m"), "INVALID_FRAME", grpc.StatusCode.INVALID_ARGUMENT),
        (errors.FrameTooLarge("m"), "FRAME_TOO_LARGE", grpc.StatusCode.INVALID_ARGUMENT),
        (errors.Overloaded("m"), "OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.StageUnavailable("m"), "STAGE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_an_agent_error_keeps_its_message(
    error: Exception, code: str, expected: grpc.StatusCode
) -> None:
    failure = status.failure_of(error)
    assert (failure.code, failure.status, failure.message) == (code, expected, "m")
    assert failure.is_clients_fault == (expected is grpc.StatusCode.INVALID_ARGUMENT)


def test_a_stage_that_serve_has_none_of_is_unavailable() -> None:
    error = ray.serve.exceptions.DeploymentUnavailableError(DeploymentID("Language"))
    assert status.failure_of(error).code == "STAGE_UNAVAILABLE"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret"),
        errors.SettingsError("secret"),
        KeyError("secret"),
    ],
)
def test_a_bug_tells_the_client_nothing_but_an_id_that_is_in_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        failure = status.failure_of(error)
    assert failure.status is grpc.StatusCode.INTERNAL
    assert "secret" not in failure.message
    assert failure.request_id in failure.message
    assert failure.request_id in caplog.text
    assert "secret" in caplog.text


def test_a_client_that_went_away_in_the_middle_of_a_message_is_no_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = status.failure_of(grpc.aio.InternalError("execute_batch"))
    assert (failure.code, failure.status) == ("CLIENT_GONE", grpc.StatusCode.CANCELLED)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_hint_survives_the_way_between_processes() -> None:
    sent = pickle.loads(pickle.dumps(errors.Overloaded("later", retry_after_s=0.25)))
    failure = status.failure_of(sent)
    assert (failure.message, failure.retry_after_s) == ("later", 0.25)
