"""Every bad input over gRPC to the real service: what it gets, and that the next one is answered.

docs/bad_input.md is what this test saw; `pytest --write-pages` writes it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from tests import bad_inputs
from tests.bad_inputs import BAD_BYTES, BAD_CALLS, BAD_OPENINGS, BAD_STREAMS, UNUSUAL_CALLS
from tests.integration.conftest import ROOT

PAGE = ROOT / "docs" / "bad_input.md"
BY_HAND = "## Faults found by trying to break it"
"""From here on the page is written by hand; each row names its own test."""
LEAST = 60
_TIMEOUT_S = 20.0
_SHOWN = 110
_LAST = 2**64 - 1
_OPENING = pb.WatchRequest(open=pb.OpenStream(policy=pb.StreamPolicy(mode=pb.ANSWER_MODE_GROUND)))


@dataclass(frozen=True)
class Verdict:
    """What the service says to one input."""

    status: str
    code: str
    message: str

    @property
    def shown(self) -> str:
        """The message as it is the same everywhere."""
        # What the decoder says in brackets differs between its versions.
        text = re.sub(r"decoded \(.*\);", "decoded;", self.message)
        text = re.sub(r"begin with [0-9a-f ]+\)", "begin with ...)", text)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


ANSWERED = Verdict("OK", "", "")


class Table:
    """Sends inputs and keeps what came of them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = pb_grpc.VisionAgentStub(channel)

    async def call(self, case: bad_inputs.Call) -> Verdict:
        """As a single call."""
        request = pb.GroundRequest(frame=case.frame, queries=case.queries, zoom=case.zoom)
        try:
            await self._stub.Ground(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return _verdict(error)
        return ANSWERED

    async def send(self, case: bad_inputs.Raw) -> Verdict:
        """As it is."""
        try:
            await self._channel.unary_unary(case.method)(case.content, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return _verdict(error)
        return ANSWERED

    async def on_stream(
        self, *requests: pb.WatchRequest, opening: bool = True, is_bad: bool = False
    ) -> Verdict:
        """On a stream, which then still answers a good frame; the first error counts.

        `is_bad`: an error must come, perhaps after the answer to a good frame before it.
        """
        call = self._stub.Watch(timeout=_TIMEOUT_S)
        good = pb.WatchRequest(set_queries=pb.SetQueries(queries=[bad_inputs.GOOD_QUERY]))
        for request in (*([_OPENING, good] if opening else []), *requests):
            await call.write(request)
        verdict = None
        async for message in call:
            if message.HasField("error"):
                code = pb.ErrorCode.Name(message.error.code).removeprefix("ERROR_CODE_")
                verdict = verdict or Verdict("on the stream", code, message.error.message)
            elif message.HasField("result") and message.result.results and not is_bad:
                verdict = ANSWERED
            if verdict is not None:
                break
        assert verdict is not None
        await self._is_answered(call)
        return verdict

    async def _is_answered(self, call: grpc.aio.StreamStreamCall) -> None:
        """A good frame on the same stream, whatever came before."""
        policy = pb.SetPolicy(policy=pb.StreamPolicy(mode=pb.ANSWER_MODE_GROUND))
        good = pb.Frame(encoded_image=bad_inputs.GOOD_IMAGE, sequence=_LAST)
        for request in (
            pb.WatchRequest(set_policy=policy),
            pb.WatchRequest(set_queries=pb.SetQueries(queries=[bad_inputs.GOOD_QUERY])),
            pb.WatchRequest(frame=good),
            pb.WatchRequest(end=pb.End()),
        ):
            await call.write(request)
        answered = [m.result async for m in call if m.HasField("result")]
        stands = [r for r in answered if r.sequence == _LAST and r.results[0].detections]
        assert len(stands) == 1, "the stream did not go on"


def _verdict(error: grpc.aio.AioRpcError) -> Verdict:
    code = str(dict(error.trailing_metadata() or ()).get("groundstream-error", ""))
    return Verdict(error.code().name, code, error.details() or "")


async def answered_after(table: Table, what: str) -> None:
    """The service still works."""
    assert await table.call(bad_inputs.Call("good")) == ANSWERED, f"after {what}"


async def test_every_bad_input(service: str, pytestconfig: pytest.Config) -> None:
    rows, unusual = [], []
    # Rejected before they are decoded, messages may be as large as a client cares to send.
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(service, options=options) as channel:
        table = Table(channel)
        for case in BAD_CALLS:
            single = await table.call(case)
            rows.append(_row(case.what, single))
            assert single.status in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), case.what
            await answered_after(table, case.what)
            if not case.only_single:
                streamed = await table.on_stream(*_as_stream(case))
                assert streamed.code == single.code, case.what
        for stream in (*BAD_STREAMS, *BAD_OPENINGS):
            opening = stream not in BAD_OPENINGS
            verdict = await table.on_stream(*stream.requests, opening=opening, is_bad=True)
            assert verdict.code.startswith("INVALID"), stream.what
            rows.append(_row(stream.what, verdict))
            await answered_after(table, stream.what)
        for raw in BAD_BYTES:
            verdict = await table.send(raw)
            assert verdict != ANSWERED, raw.what
            rows.append(_row(raw.what, verdict))
            await answered_after(table, raw.what)
        for case in UNUSUAL_CALLS:
            assert await table.call(case) == ANSWERED, case.what
            if case.frame.sequence != _LAST:
                assert await table.on_stream(*_as_stream(case)) == ANSWERED, case.what
            unusual.append(f"- {case.what}")
    assert len(rows) >= LEAST
    written = PAGE.read_text(encoding="utf-8")
    faults = written[written.index(BY_HAND) :]
    page = _page(rows, unusual) + "\n" + faults
    _check_page(PAGE, page, write=pytestconfig.getoption("--write-pages"))


def _row(what: str, verdict: Verdict) -> str:
    cells = (what, verdict.status, verdict.code, verdict.shown)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _as_stream(case: bad_inputs.Call) -> tuple[pb.WatchRequest, ...]:
    queries = pb.SetQueries(queries=case.queries, change_id=9)
    return pb.WatchRequest(set_queries=queries), pb.WatchRequest(frame=case.frame)


def _page(rows: list[str], unusual: list[str]) -> str:
    return "\n".join(
        [
            "# Bad input",
            "",
            "What the service says to each. `tests/integration/test_bad_input_table.py` sends them",
            "over gRPC to the running service and has a good call answered after each; with",
            "`--write-pages` it writes this part of the page, and else compares. What a single",
            "call is refused for, a stream reports in-band under the same code, and goes on: the",
            "test has a good frame answered on the same stream.",
            "",
            f"## Refused: {len(rows)}",
            "",
            "| input | status | code | message |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Unusual, and answered",
            "",
            *unusual,
            "",
        ]
    )


def _check_page(path: Path, page: str, *, write: bool) -> None:
    if write:
        path.write_text(page, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page, "run it again with --write-pages and look"
