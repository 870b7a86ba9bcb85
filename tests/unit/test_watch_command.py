"""What `groundstream watch` shows and refuses, over the service with fake stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.local.watch import watch_source
from groundstream import aio
from groundstream.errors import InvalidQuery
from tests.in_process import running_service
from tests.pictures import encoded_image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded_image(1, kind="PNG"))
    return path


async def test_one_picture_is_shown_with_its_answer(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        await watch_source(client, str(picture), ["dog"], as_json=True)
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (answer,) = [event for event in events if event["event"] == "FrameResult"]
        assert answer["results"][0]["status"] == "OK"
        assert answer["results"][0]["detections"]
        await watch_source(client, str(picture), ["dog"])
        assert "OK" in capsys.readouterr().out


@pytest.mark.parametrize("query", ["", "  ", "<region3>", "x" * 2001])
async def test_a_query_that_cannot_be_asked_is_refused_before_anything_is_sent(
    picture: Path, query: str
) -> None:
    async with aio.Client("127.0.0.1:1") as client:
        with pytest.raises(InvalidQuery):
            await watch_source(client, str(picture), ["dog", query], patience_s=0.1)


async def test_queries_that_the_service_refuses_end_the_watch(picture: Path) -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        with pytest.raises(InvalidQuery, match="more than 16 queries"):
            await watch_source(client, str(picture), [f"thing {n}" for n in range(17)])
