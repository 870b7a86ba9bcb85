"""What a local service says when Ray does not start."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import ray

from agent.errors import StageUnavailable
from agent.settings import ServiceSettings
from deployments import local_cluster


def test_ray_that_does_not_start_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**_options: object) -> NoReturn:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(local_cluster, "ENVIRONMENT", {})
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(StageUnavailable, match=r"timed out during startup.* less to do"):
        local_cluster._start_ray(ServiceSettings(model="pocket"), tmp_path)
