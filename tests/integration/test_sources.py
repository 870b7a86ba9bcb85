"""Sources as they are: an RTSP server that is killed, stopped and comes back; files and pipes."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from deployments.local.service_process import free_port
from deployments.local.watch import watch_source
from groundstream import aio
from groundstream.enums import VideoCodec
from groundstream.errors import SourceError
from groundstream.events import SourceClockJumped, SourceEvent, SourceLost, SourceOpened
from groundstream.video.live import LiveSource, SourceFrame
from groundstream.video.playback import play
from groundstream.video.sources import Reopen, SourcePacket, VideoFile, open_source
from tests.clips import GREY_STEP, turn_clip, write_clip
from tests.in_process import running_service
from tests.waiting import until

ROOT = Path(__file__).parents[2]
LONG = pytest.mark.skipif("SOURCES" not in os.environ, reason="takes a minute; SOURCES=1")
QUICK = Reopen(first_pause_s=0.2, max_pause_s=1.0, silence_s=2.0)


class Camera:
    """`tests.rtsp_server` in a process of its own."""

    def __init__(self, video: Path, *options: str) -> None:
        self.port = free_port()
        self._video, self._options = video, options
        self._process: subprocess.Popen[str] | None = None

    def url(self, user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.port}/street"

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.rtsp_server", str(self.port), str(self._video)]
        self._process = subprocess.Popen(
            [*command, *self._options], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Reader:
    """Reads a source in a thread and remembers everything."""

    def __init__(self, url: str, reopen: Reopen = QUICK) -> None:
        self.events: list[SourceEvent] = []
        self.pictures: list[tuple[float, SourceFrame]] = []
        self.error: Exception | None = None
        source = open_source(url, reopen=reopen, on_event=self.events.append)
        assert isinstance(source, LiveSource)
        self.source = source
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for picture in self.source:
                self.pictures.append((time.monotonic(), picture))
        except SourceError as error:
            self.error = error

    def stop(self) -> None:
        self.source.stop()
        self._thread.join(10.0)
        assert not self._thread.is_alive()

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.events)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds with B-frames."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", b_frames=2)


@pytest.fixture
def camera(clip: Path) -> Iterator[Camera]:
    camera = Camera(clip)
    yield camera
    camera.kill()


def test_a_camera_that_is_killed_and_comes_back(camera: Camera) -> None:
    reader = Reader(camera.url())
    until(lambda: reader.count(SourceLost) >= 2)  # Not there yet.
    camera.start()
    until(lambda: len(reader.pictures) >= 15)
    camera.kill()
    until(lambda: reader.count(SourceLost) >= 5)
    camera.start()
    until(lambda: reader.count(SourceOpened) == 2)
    before = len(reader.pictures)
    until(lambda: len(reader.pictures) >= before + 15)
    reader.stop()
    times = [picture.pts_s for _, picture in reader.pictures]
    assert all(later >= earlier for earlier, later in pairwise(times))
    assert reader.count(SourceClockJumped) == 0
    # The time without pictures is in their times.
    gaps = [later - earlier for earlier, later in pairwise(times)]
    opened = [event for event in reader.events if isinstance(event, SourceOpened)]
    assert max(gaps) == pytest.approx(opened[1].lost_s, abs=1.0)


def test_a_camera_whose_packets_are_passed_on(camera: Camera, clip: Path) -> None:
    """Without decoding, with B pictures, and with a key frame first after it was away."""
    camera.start()
    source = open_source(camera.url(), reopen=QUICK)
    assert isinstance(source, LiveSource)
    packets: list[SourcePacket] = []
    for item in source.packets(tuple(VideoCodec)):
        assert isinstance(item, SourcePacket)
        packets.append(item)
        if len(packets) == 40:
            camera.kill()
            camera.start()
        if len(packets) > 80:
            source.stop()
    runs = [[p for p in packets if p.coded.run == run] for run in {p.coded.run for p in packets}]
    assert len(runs) == 2
    for run in runs:
        assert run[0].coded.is_key
        # Those at its end still wait for their numbers to be known when it is lost.
        ranks = sorted(packet.coded.rank for packet in run)
        assert ranks[:-4] == list(range(len(ranks) - 4))
        assert any(packet.coded.late_s > 0 for packet in run)
    assert [packet.due_s for packet in packets] == sorted(packet.due_s for packet in packets)


def test_a_camera_that_stalls_is_noticed_and_opened_again(camera: Camera) -> None:
    camera.start()
    reader = Reader(camera.url())
    until(lambda: len(reader.pictures) >= 15)
    camera.signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    until(lambda: reader.count(SourceLost) >= 1)
    assert time.monotonic() - stopped_s < 3 * QUICK.silence_s
    (lost,) = [event for event in reader.events if isinstance(event, SourceLost)][:1]
    assert "says nothing for 2 s" in lost.reason
    # It is stopped, so connecting succeeds and nothing is answered.
    until(lambda: reader.count(SourceLost) >= 2)
    camera.signal(signal.SIGCONT)
    until(lambda: reader.count(SourceOpened) == 2)
    reader.stop()


def test_pictures_of_a_camera_come_in_order_at_its_pace(camera: Camera) -> None:
    camera.start()
    reader = Reader(camera.url())
    until(lambda: bool(reader.pictures) and reader.pictures[-1][1].pts_s > 3.0)
    reader.stop()
    first_s, first = reader.pictures[0]
    last_s, last = reader.pictures[-1]
    # What FFmpeg looks at before it begins, up to a second, comes at once.
    assert last.pts_s - first.pts_s - 1.5 < last_s - first_s < last.pts_s - first.pts_s + 1.5
    right = [int(picture.rgb[60, 120, 0]) for _, picture in reader.pictures]
    times = [round(30 * picture.pts_s) for _, picture in reader.pictures]
    start = (right[0] - 40) / GREY_STEP - times[0]
    for grey, number in zip(right, times, strict=True):
        # Presented in order, although B-frames are sent in another; the clip has 60 pictures and
        # greys repeat after 50.
        expected = 40 + GREY_STEP * ((round(number + start) % 60) % 50)
        assert abs(grey - expected) <= 2 * GREY_STEP


@LONG
@pytest.mark.slow
def test_a_camera_that_is_back_after_ten_seconds(camera: Camera) -> None:
    camera.start()
    reader = Reader(camera.url(), Reopen())
    until(lambda: len(reader.pictures) >= 15)
    camera.kill()
    time.sleep(10.0)
    camera.start()
    until(lambda: reader.count(SourceOpened) == 2)
    reader.stop()
    pauses = [event.retry_s for event in reader.events if isinstance(event, SourceLost)]
    assert all(pause is not None for pause in pauses)
    assert 3 <= len(pauses) <= 9
    opened = [event for event in reader.events if isinstance(event, SourceOpened)]
    assert 10.0 <= opened[1].lost_s < 30.0


@LONG
@pytest.mark.slow
def test_opening_and_closing_a_camera_leaks_nothing(camera: Camera) -> None:
    camera.start()
    refused = Camera(Path("none")).url()

    def open_once(url: str) -> None:
        pictures = iter(open_source(url, reopen=Reopen(patience_s=0.0, silence_s=5.0)))
        try:
            next(pictures)
            pictures.close()  # type: ignore[attr-defined]
        except SourceError:
            assert url == refused

    def used() -> tuple[int, int]:
        until(lambda: not any(thread.name == "source" for thread in threading.enumerate()))
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    for url in (refused, camera.url()):
        for _ in range(10):
            open_once(url)
        before, memory = used(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(450 if url == refused else 50):
            open_once(url)
        after = used()
        assert after[0] <= before[0] + 2
        assert after[1] <= before[1]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 * 1024


def test_a_variable_rate_is_kept(tmp_path: Path) -> None:
    times_s = [0.0, 0.1, 0.15, 0.2, 0.6, 0.65, 0.9, 1.2]
    path = write_clip(tmp_path / "variable.mp4", len(times_s), b_frames=2, times_s=times_s)
    assert [picture.pts_s for picture in open_source(str(path))] == pytest.approx(times_s, abs=0.01)


async def test_two_pieces_joined_keep_their_pace(tmp_path: Path) -> None:
    pieces = [write_clip(tmp_path / f"{n}.ts", 50, fps=50, start_s=3.0) for n in (1, 2)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    events: list[SourceEvent] = []
    came_s = [
        time.monotonic() async for _ in play(open_source(str(joined), on_event=events.append))
    ]
    assert len(came_s) >= 99
    assert came_s[-1] - came_s[0] > 1.9  # 100 pictures, 20 ms apart.
    pts_s = [picture.pts_s for picture in open_source(str(joined))]
    assert pts_s == pytest.approx([number / 50 for number in range(len(pts_s))], abs=0.001)
    assert [type(event) for event in events] == [SourceClockJumped]


@pytest.mark.parametrize(
    ("matrix", "black"),
    [
        ((0, 1, -1, 0), "top"),  # turned by 90 degrees to the right, as phones are held
        ((-1, 0, 0, -1), "right"),
        ((0, -1, 1, 0), "bottom"),
        ((-1, 0, 0, 1), "right"),  # a mirror
        ((1, 0, 0, 1), "left"),
    ],
)
def test_pictures_are_turned_as_the_file_says(
    matrix: tuple[int, int, int, int], black: str, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "phone.mp4", 3)
    turn_clip(path, matrix)
    first = next(iter(open_source(str(path)))).rgb
    assert first.shape == ((160, 120, 3) if black in ("top", "bottom") else (120, 160, 3))
    height, width = first.shape[:2]
    sides = {
        "left": first[:, : width // 2 - 8],
        "right": first[:, width // 2 + 8 :],
        "top": first[: height // 2 - 8],
        "bottom": first[height // 2 + 8 :],
    }
    assert {name for name, part in sides.items() if part.max() < 20} == {black}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server for the files of `tmp_path`, by its address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_video_on_a_web_server_has_an_end(tmp_path: Path, web: str) -> None:
    write_clip(tmp_path / "clip.mp4")
    source = open_source(f"{web}/clip.mp4")
    assert isinstance(source, VideoFile)
    assert len(list(source)) == 60
    with pytest.raises(SourceError, match="404"):
        open_source(f"{web}/other.mp4?token=opensesame", reopen=Reopen(patience_s=0.0))


def test_hls_is_live_and_shown_at_its_pace(tmp_path: Path, web: str) -> None:
    for number in (1, 2):
        write_clip(tmp_path / f"{number}.ts", start_s=10.0 + 2.0 * number)
    (tmp_path / "live.m3u8").write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
        "#EXTINF:2.0,\n1.ts\n#EXTINF:2.0,\n2.ts\n"
    )
    events: list[SourceEvent] = []
    source = open_source(
        f"{web}/live.m3u8", reopen=Reopen(patience_s=0.0, silence_s=4.0), on_event=events.append
    )
    assert isinstance(source, LiveSource)
    came_s = []

    def read() -> None:
        for _ in source:
            came_s.append(time.monotonic())

    with pytest.raises(SourceError):  # No third piece comes.
        read()
    assert source.num_pictures >= 100
    # Four seconds of pictures, all of them there at once.
    assert came_s[-1] - came_s[0] > 3.0
    (lost,) = [event for event in events if isinstance(event, SourceLost)]
    assert lost.retry_s is None


def test_standard_input_is_read_once(clip: Path) -> None:
    code = (
        "from groundstream.video.sources import open_source;"
        "source = open_source('-'); print(len(list(source)));"
        "print(next(iter(source)))"
    )
    with write_clip(clip.with_suffix(".ts")).open("rb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=pipe, capture_output=True, text=True, timeout=60
        )
    assert done.stdout == "60\n"
    assert "standard input can be read once" in done.stderr


def test_a_file_is_opened_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    opened: list[str] = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda name, **more: opened.append(name) or real(name, **more))
    source = open_source(str(clip))
    assert isinstance(source, VideoFile)
    source.check()
    assert len(list(source)) == 60
    assert opened == [str(clip)]
    assert len(list(source)) == 60  # A file can be read again.


def test_passwords_do_not_leave(
    clip: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    camera = Camera(clip, "--user", "me:opensesame")
    camera.start()
    try:
        reader = Reader(camera.url("me:opensesame@"))
        until(lambda: len(reader.pictures) >= 3)
        reader.stop()
        wrong = Reader(camera.url("me:guessed@"), Reopen(patience_s=0.0))
        until(lambda: wrong.error is not None)
        assert "401" in str(wrong.error) or "nauthorized" in str(wrong.error)
        assert wrong.error is not None
        assert wrong.error.__cause__ is None
    finally:
        camera.kill()
    said = capfd.readouterr()
    everything = f"{said.out}{said.err}{caplog.text}{reader.source!r}{reader.events}{wrong.error!r}"
    assert "opensesame" not in everything
    assert "guessed" not in everything


async def test_watch_tells_a_lost_camera_from_an_end(
    camera: Camera, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera.start()
    async with running_service() as service, aio.Client(service.target) as client:
        await watch_source(client, str(clip), ["dog"], as_json=True)  # It ends.
        threading.Timer(3.0, camera.kill).start()
        with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1"):
            await asyncio.wait_for(
                watch_source(
                    client, camera.url(), ["dog"], as_json=True,
                    reopen=Reopen(1.0, first_pause_s=0.2, silence_s=2.0),
                ),
                60.0,
            )  # fmt: skip
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("SourceOpened") == 1
    assert kinds.count("SourceLost") >= 2
    assert kinds.count("SourceEnded") == 1
    (lost,) = [event for event in events if event["event"] == "SourceLost"][-1:]
    assert lost["retry_s"] is None


def test_the_exit_status_tells_a_lost_camera_from_an_end(camera: Camera) -> None:
    status: list[int] = []
    camera.start()

    async def watched(target: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
        command = [sys.executable, "-m", "deployments.cli", "watch"]
        for source in (str(camera._video), camera.url()):
            process = await asyncio.create_subprocess_exec(
                *command, source, "dog", "--target", target, "--source-patience", "1", "--json",
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment,
            )  # fmt: skip
            if source == camera.url():
                asyncio.get_running_loop().call_later(8.0, camera.kill)
            _, said = await asyncio.wait_for(process.communicate(), 90.0)
            status.append(process.returncode or 0)
            if process.returncode:
                assert b"rtsp://127.0.0.1" in said
                assert b"Traceback" not in said

    async def run() -> None:
        async with running_service() as service:
            await watched(service.target)

    asyncio.run(run())
    assert status == [0, 2]
