"""One stream: frames and control messages in, results and the books out.

One task reads, one answers, one reports, one saves; only one writes at a time. Knows the wire only
through `deployments/wire/messages.py`; knows no Ray and no server.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Any

import grpc.aio

from agent.detections import FloatArray
from agent.pipeline import Grounder
from agent.quotas import TenantQuota
from agent.settings import ServiceSettings
from agent.streaming.camera_path import CameraPath
from agent.streaming.session import Gap, Seen, Session
from agent.streaming.session_store import SessionStore, new_token
from agent.streaming.snapshot import read_snapshot
from deployments.streams.frame_answers import FrameAnswers
from deployments.streams.frame_tracking import ArrivedFrame
from deployments.streams.observers import ObservedCall
from deployments.streams.responses import ResponseWriter
from deployments.streams.scheduler import StreamScheduler
from deployments.streams.video_decoding import DecodingThreads, StreamVideo
from deployments.wire import messages, stream_messages
from deployments.wire.frame_reading import receive_frame
from deployments.wire.message_bounds import RefusedMessage
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import failure_of
from groundstream.errors import AgentError, InvalidQuery, InvalidRequest, StreamIdle


class WatchStream:
    """Answers one client's frames until it ends, goes away, or the replica drains."""

    def __init__(
        self,
        rpc: Any,
        pipeline: Grounder,
        settings: ServiceSettings,
        draining: asyncio.Event,
        store: SessionStore,
        scheduler: StreamScheduler,
        decoding: DecodingThreads,
        quota: TenantQuota,
        failures: Counter[str],
    ) -> None:
        self.session: Session[ArrivedFrame] = Session(
            max_queries=settings.stream.max_queries,
            max_window_bytes=settings.stream.max_window_bytes,
        )
        self._rpc = rpc
        self._settings = settings
        self._draining = draining
        self._store = store
        self._quota = quota
        self._responses = ResponseWriter(rpc, failures)
        self._answers = FrameAnswers(
            self.session, pipeline, settings.stream.follow, self._responses, scheduler
        )
        self._video = StreamVideo(
            self.session, decoding, quota, self._responses, partial(self._offer, decoded=True)
        )
        self._token: str | None = None
        self._changed = asyncio.Event()
        """Set when there is something new for a snapshot."""
        self._is_first = True
        self._saving = asyncio.Lock()
        self._is_idle = False
        """It has said nothing for too long."""
        self._was_ended = False
        """The client said so; it will not come back."""
        self._path = CameraPath()
        self._num_charged = 0

    async def run(self) -> None:
        """Serve the stream to its end; a cancelled stream leaves no task behind."""
        background = [
            asyncio.create_task(work)
            for work in (
                # A stream that comes while the replica drains is told so before anything else.
                self._announce_drain(), self._read_all(), self._report_books(),
                self._save_snapshots(), self._video.decode_all(),
            )
        ]  # fmt: skip
        try:
            while (work := await self.session.take()) is not None:
                await self._answers.answer(work)
                await self._charge_answers(work.item.boxes)
                self._changed.set()
            await self._answers.settle()
            # Holding the lock, no message under way is cut in two.
            async with self._responses.writing:
                _cancel(background)
        except asyncio.CancelledError:
            # Whoever cuts it off, it is resumed from here and not from the last snapshot.
            await self._close_session()
            raise
        finally:
            _cancel(background)
            await self._answers.cancel()
            self._video.close()
            ended = await asyncio.gather(*background, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        await self._close_session()
        await self._responses.send(lambda: self._books(ended=not self._is_idle))
        if self._is_idle:
            raise StreamIdle(
                f"nothing came on this stream for {self._settings.stream.idle_s:g} s; open it "
                "again when there is something to send"
            )

    async def _charge_answers(self, boxes: FloatArray | None) -> None:
        """To the tenant, for what the language model was asked since the last frame."""
        num_answers = self._answers.activity.num_answers
        num_new, self._num_charged = num_answers - self._num_charged, num_answers
        await self._quota.charge_questions(num_new, 0 if boxes is None else len(boxes))

    # ---- reading ----

    async def _read_all(self) -> None:
        try:
            while not self.session.ended:
                try:
                    async with asyncio.timeout(self._settings.stream.idle_s):
                        message = await self._rpc.read()
                except RefusedMessage as refused:
                    self._is_first = False
                    await self._refuse(refused)
                    continue
                except TimeoutError:
                    self._is_idle = True
                    break
                # A half-closed stream says nothing more, and so does one whose connection broke:
                # gRPC tells of that a moment later, if at all.
                if message is grpc.aio.EOF:
                    break
                if stream_messages.request_kind(message) == "end":
                    self._was_ended = True
                    break
                await self._accept(message)
                self._is_first = False
            await self._video.flush()
        finally:
            self.session.end()

    async def _refuse(self, refused: RefusedMessage) -> None:
        """Tell of a message that was not even parsed, by the number that its sender gave it."""
        about = {"sequence": refused.sequence, "change_id": refused.change_id}
        if refused.is_packet:
            self._video.miss()
        if refused.is_frame:
            self.session.reject()
        given = {name: number for name, number in about.items() if number is not None}
        await self._responses.send_failure(failure_of(refused.error), **given)

    async def _accept(self, message: Any) -> None:
        match stream_messages.request_kind(message):
            case "frame":
                await self._accept_frame(message.frame)
            case "packet":
                await self._video.accept(message.packet)
            case "start_video":
                await self._change(self._video.start(message.start_video), 0)
            case "set_queries" | "put_query" | "remove_query" as kind:
                change = getattr(message, kind)
                await self._change(self._change_queries(kind, change), change.change_id)
            case "set_policy":
                change = message.set_policy
                await self._change(self._set_policy(change), change.change_id)
            case "ack":
                self.session.acknowledge(message.ack.sequence)
            case "pause":
                self.session.pause()
            case "resume":
                # The packets that came while it was paused are superseded, decoded or not.
                await self._video.settle()
                self.session.resume()
            case "open":
                await self._change(self._open(message.open), 0)
            case _:
                error = InvalidRequest("the message is empty or of a kind this service lacks")
                await self._responses.send_failure(failure_of(error))

    async def _accept_frame(self, message: Any) -> None:
        await self._video.settle()  # The pictures of packets that came before it are before it.
        try:
            received = await receive_frame(message, limits=self._settings.frame, quota=self._quota)
        except AgentError as error:
            self.session.reject()
            await self._responses.send_failure(failure_of(error), sequence=message.sequence)
            return
        await self._offer(received)

    async def _offer(self, received: ReceivedFrame, *, decoded: bool = False) -> None:
        frame = received.frame
        try:
            arrived = ArrivedFrame.at(self._path.step(received.ego_motion), received)
            self.session.offer(
                arrived, frame.index, arrived.priority, num_bytes=frame.num_bytes, decoded=decoded
            )
        except AgentError as error:
            await self._responses.send_failure(failure_of(error), sequence=frame.index)
            return
        if isinstance(self._rpc, ObservedCall) and self._rpc.is_observed:
            self._rpc.keep_picture(frame.index, (await arrived.still()).encoded)

    # ---- control ----

    async def _change(self, change: Coroutine[Any, Any, None], change_id: int) -> None:
        """Make a change, or say why nothing changed."""
        try:
            await change
        except AgentError as error:
            await self._responses.send_failure(failure_of(error), change_id=change_id)
        self._changed.set()

    async def _change_queries(self, kind: str, message: Any) -> None:
        epoch = self._apply(kind, message)
        ids = self.session.query_ids
        await self._responses.send(
            lambda: stream_messages.ack_response(epoch, message.change_id, ids)
        )

    def _apply(self, kind: str, message: Any) -> int:
        limit = self._settings.stream.max_new_tokens
        if kind == "set_queries":
            self.session.check_count(len(message.queries))
            tasks = messages.tasks_from_messages(message.queries, max_new_tokens=limit)
            return self.session.set_queries(tasks)
        if kind == "put_query":
            name = message.query.id
            if not name:
                raise InvalidQuery("PutQuery needs a query id, so that it can be replaced")
            task = messages.named_task_from_message(name, message.query, max_new_tokens=limit)
            return self.session.put_query(name, task)
        return self.session.remove_query(message.query_id)

    async def _set_policy(self, message: Any) -> None:
        policy = stream_messages.policy_from_message(message.policy, self._settings.stream)
        self.session.set_policy(policy)
        await self._responses.send(
            lambda: stream_messages.policy_response(policy, message.change_id)
        )

    # ---- sessions that outlive a stream ----

    async def _open(self, message: Any) -> None:
        if not self._is_first:
            raise InvalidRequest("OpenStream must be the first message of a stream")
        seen = stream_messages.seen_from_message(message)
        policy = stream_messages.policy_from_message(message.policy, self._settings.stream)
        resumed, gap = False, None
        if message.resume_token:
            resumed, gap = await self._resume(message.resume_token, seen)
        if not resumed:
            self.session.set_policy(policy)
            # The books of a stream close even when its session is forgotten.
            gap = self.session.catch_up(seen)
        # Every stream has a token of its own: one that is still dying cannot overwrite this one.
        token = new_token()
        await self._responses.send(
            lambda: stream_messages.opened_response(token, self.session, resumed=resumed, gap=gap)
        )
        self._token = token

    async def _resume(self, token: str, seen: Seen) -> tuple[bool, Gap | None]:
        encoded = await self._store.load(token)
        if encoded is None:
            return False, None
        snapshot = await asyncio.to_thread(read_snapshot, encoded)
        if snapshot is None:
            return False, None
        self._answers.resume(snapshot.restore(self.session, self._settings.stream.follow))
        return True, self.session.catch_up(seen)

    async def _save_snapshots(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._save()
            await asyncio.sleep(self._settings.stream.session.interval_s)

    async def _save(self) -> None:
        # One at a time: a drain may save while the second's own snapshot is under way.
        async with self._saving:
            if self._token is not None:
                await self._store.save(self._token, await self._answers.snapshot())

    async def _close_session(self) -> None:
        """A session that its client ended is over; one that anything else ended can be resumed."""
        if self._draining.is_set() or not self._was_ended:
            await self._save()
        elif self._token is not None:
            await self._store.delete(self._token)

    # ---- reporting ----

    def _books(self, *, ended: bool = False) -> Any:
        activity = stream_messages.activity_to_message(
            self._answers.activity, self.session, num_tracks=self._answers.num_tracks
        )
        return stream_messages.books_response(self.session.books, activity, ended=ended)

    async def _report_books(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._settings.stream.stats_interval_s)
                await self._responses.send(self._books)
        finally:
            # A client that does not read them has no use for what follows either.
            self.session.end()

    async def _announce_drain(self) -> None:
        await self._draining.wait()
        grace_s = self._settings.server.drain_grace_s
        # Saved before the client is told, so that it finds its session wherever it goes.
        await self._save()
        await self._responses.send(
            lambda: stream_messages.drain_response("the replica is going away", grace_s)
        )
        # The client may end first; otherwise the stream is ended in good order, not cut.
        await asyncio.sleep(grace_s)
        await self._video.flush()
        self.session.end()


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
