"""Snapshots and clips: which pictures, whole or not at all, and removed in their time."""

from __future__ import annotations

import io
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundstream.cameras.clips import Clip, Clips, Shot
from groundstream.cameras.library import Library
from groundstream.cameras.recording import Recording
from groundstream.cameras.settings import RecordingSettings
from groundstream.scene_events import EventKind, SceneEvent
from groundstream.types import OutgoingFrame
from groundstream.video.pictures import encode_jpeg
from groundstream.video.sources import open_source
from tests.receivers import Record
from tests.waiting import until

_NS = 1_000_000_000
START_NS = 1_795_900_000 * _NS
FPS = 10


def frame(number: int) -> OutgoingFrame:
    """A picture whose grey is its number."""
    encoded = encode_jpeg(np.full((48, 64, 3), number % 250, np.uint8), 90)
    return OutgoingFrame(encoded, number, capture_time_ns=START_NS + number * _NS // FPS)


def event(number: int, began: int, kind: EventKind = EventKind.APPEARED) -> SceneEvent:
    """Certain in one frame, begun in another."""
    return SceneEvent(
        id=f"{number:024d}", kind=kind, query="dog", sequence=number,
        capture_time_ns=START_NS + number * _NS // FPS, began_sequence=began,
        began_time_ns=START_NS + began * _NS // FPS, box=(8.0, 8.0, 40.0, 40.0),
    )  # fmt: skip


def settings(folder: Path, **more: object) -> RecordingSettings:
    usual = {"before_s": 1.0, "after_s": 1.0, "max_s": 10.0, **more}
    return RecordingSettings(folder, frozenset({EventKind.APPEARED}), **usual)


def library(tmp_path: Path, *, keep_days: float = 0.0, keep_bytes: int = 0) -> Library:
    return Library(
        tmp_path / "kept", tmp_path / "list.sqlite", keep_days=keep_days, keep_bytes=keep_bytes
    )


def numbers(clip: Clip | Shot) -> list[int]:
    assert isinstance(clip, Clip)
    return [one.sequence for one in clip.frames]


# ---- which pictures ----


def test_a_clip_has_what_was_before_and_after(tmp_path: Path) -> None:
    jobs: list[Shot | Clip] = []
    clips = Clips("gate", settings(tmp_path), jobs.append)
    for number in range(100):
        clips.add(frame(number))
        if number == 55:
            named = clips.note(event(55, 50))
    shot, clip = jobs
    assert isinstance(shot, Shot)
    assert shot.frame.sequence == 50
    assert shot.box is not None
    assert (named["snapshot"], named["clip"]) == (shot.name, clip.name)
    assert numbers(clip) == list(range(40, 66))
    assert isinstance(clip, Clip)
    assert not clip.is_cut
    assert clip.name.startswith("gate/20")


def test_events_that_follow_each_other_share_a_clip_of_bounded_length(tmp_path: Path) -> None:
    jobs: list[Shot | Clip] = []
    clips = Clips("gate", settings(tmp_path, snapshots=False, max_s=5.0), jobs.append)
    names = []
    for number in range(200):
        clips.add(frame(number))
        if number in (50, 58, 66, 74, 82, 150):
            names.append(clips.note(event(number, number))["clip"])
    assert names[0] == names[1] == names[4] != names[5]
    first, second = jobs
    assert numbers(first) == list(range(40, 91))
    assert isinstance(first, Clip)
    assert first.event_ids == [f"{n:024d}" for n in (50, 58, 66, 74, 82)]
    assert numbers(second) == list(range(140, 161))


def test_a_kind_that_is_not_recorded_is_not(tmp_path: Path) -> None:
    jobs: list[Shot | Clip] = []
    clips = Clips("gate", settings(tmp_path), jobs.append)
    clips.add(frame(0))
    assert clips.note(event(0, 0, EventKind.LEFT)) == {}
    assert jobs == []


def test_memory_is_bounded_in_bytes(tmp_path: Path) -> None:
    size = len(frame(0).encoded)
    jobs: list[Shot | Clip] = []
    clips = Clips(
        "gate", settings(tmp_path, max_ring_bytes=10 * size + 50, before_s=60.0), jobs.append
    )
    for number in range(50):
        clips.add(frame(number))
    assert len(clips._ring) <= 11
    clips.note(event(49, 49))
    clips.add(frame(50))
    clips.add(frame(51))
    (clip,) = (job for job in jobs if isinstance(job, Clip))
    assert clip.is_cut


def test_a_camera_that_stops_ends_its_clip(tmp_path: Path) -> None:
    jobs: list[Shot | Clip] = []
    clips = Clips("gate", settings(tmp_path, snapshots=False), jobs.append)
    for number in range(20):
        clips.add(frame(number))
    clips.note(event(19, 19))
    clips.close()
    (clip,) = jobs
    assert isinstance(clip, Clip)
    assert clip.is_cut
    assert numbers(clip) == list(range(9, 20))


# ---- written ----


def test_what_is_written_can_be_seen(tmp_path: Path) -> None:
    told: list[Record] = []
    recording = Recording(library(tmp_path), told.append)
    frames = [frame(number) for number in range(20)]
    recording.submit(Shot("gate/a.jpg", "e1", frames[5], (8.0, 8.0, 40.0, 40.0), "dog", "gate"))
    recording.submit(Clip("gate/a.mp4", "gate", frames, 0, 0, 1, ["e1", "e2"]))
    recording.stop(20.0)
    (record,) = told
    assert record["events"] == ["e1", "e2"]
    assert (record["frames"], record["seconds"], record["cut"]) == (20, 1.9, False)
    path = tmp_path / "kept" / "gate" / "a.mp4"
    assert record["bytes"] == path.stat().st_size
    pictures = list(open_source(str(path)))
    assert [int(picture.rgb[24, 32, 0]) for picture in pictures] == pytest.approx(range(20), abs=3)
    assert [picture.pts_s for picture in pictures] == pytest.approx(
        [number / FPS for number in range(20)], abs=0.001
    )
    shot = np.asarray(Image.open(tmp_path / "kept" / "gate" / "a.jpg"))
    assert shot[24, 8].max() > 100  # The box's border.
    assert shot[24, 24].max() < 20  # Its inside.
    assert sorted(os.listdir(tmp_path / "kept" / "gate")) == ["a.jpg", "a.mp4"]


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told: list[Record] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(1).integers(0, 255, (20, 240, 320, 3), np.uint8)
    frames = [
        OutgoingFrame(encode_jpeg(pixels, 90), number, START_NS + number * _NS // FPS)
        for number, pixels in enumerate(noise)
    ]
    recording = Recording(library(tmp_path), told.append)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        recording.submit(Clip("gate/a.mp4", "gate", frames, 0, 0, 1, ["e1"]))
        until(lambda: told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert told[0]["error"]
    assert "bytes" not in told[0]
    recording.submit(Clip("gate/b.mp4", "gate", frames, 0, 0, 1, ["e2"]))
    recording.stop(20.0)
    assert told[1]["bytes"] > 100_000  # It goes on once there is room.
    assert os.listdir(tmp_path / "kept" / "gate") == ["b.mp4"]


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    told: list[Record] = []
    recording = Recording(library(tmp_path), told.append)
    broken = OutgoingFrame(b"no picture", 1, START_NS)
    recording.submit(Clip("gate/a.mp4", "gate", [broken], 0, 0, 1, ["e1"]))
    recording.stop(5.0)
    assert told[0]["error"]
    assert list((tmp_path / "kept").rglob("*.mp4")) == []


def test_more_than_can_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstream.cameras.recording._MAX_BYTES", 1000)
    told: list[Record] = []
    recording = Recording(library(tmp_path), told.append)
    recording.submit(Clip("gate/a.mp4", "gate", [frame(0)], 0, 0, 2000, ["e1"]))
    assert "more is to be written" in told[0]["error"]
    assert recording.num_dropped == 1
    recording.stop(5.0)


# ---- kept ----


def write(kept: Library, name: str, size: int = 100) -> None:
    kept.write(name, lambda path: path.write_bytes(b"x" * size) and None)


def test_the_oldest_make_room(tmp_path: Path) -> None:
    kept = library(tmp_path, keep_bytes=350)
    for number in range(5):
        write(kept, f"gate/{number}/a.jpg")
    names = sorted(str(path.relative_to(tmp_path / "kept")) for path in kept._folder.rglob("*.jpg"))
    assert names == ["gate/2/a.jpg", "gate/3/a.jpg", "gate/4/a.jpg"]
    assert not (tmp_path / "kept" / "gate" / "0").exists()
    books = kept.books
    assert (books.num_written, books.num_removed) == (5, 2)
    assert (books.num_files, books.num_bytes) == (3, 300)
    kept.close()


def test_what_is_too_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = library(tmp_path, keep_days=2.0)
    write(kept, "a.jpg")
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 1.5 * 86_400)
    write(kept, "b.jpg")
    monkeypatch.setattr(time, "time", lambda: now_s + 2.5 * 86_400)
    kept.remove_old()
    assert os.listdir(tmp_path / "kept") == ["b.jpg"]
    kept.close()


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    (folder / "gate").mkdir(parents=True)
    (folder / "gate" / "mine.jpg").write_bytes(b"m" * 1000)
    kept = library(tmp_path, keep_bytes=150)
    write(kept, "gate/a.jpg")
    write(kept, "gate/b.jpg")  # a.jpg goes.
    (folder / "gate" / "b.jpg").write_bytes(b"y" * 100)  # Somebody else's now.
    (folder / "gate" / "a.jpg").write_bytes(b"back")
    write(kept, "gate/c.jpg")
    write(kept, "gate/d.jpg")
    assert sorted(os.listdir(folder / "gate")) == ["a.jpg", "b.jpg", "d.jpg", "mine.jpg"]
    assert (folder / "gate" / "b.jpg").read_bytes() == b"y" * 100
    assert kept.books.num_changed == 1
    kept.close()


def test_a_killed_process_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from groundstream.cameras.library import Library;"
        "root = Path(sys.argv[1]);"
        "kept = Library(root / 'kept', root / 'list.sqlite', keep_days=0, keep_bytes=0);"
        "die = lambda path: path.write_bytes(b'half') and os.kill(os.getpid(), 9);"
        "kept.write('gate/a.mp4', die)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(os.listdir(tmp_path / "kept" / "gate")) == 1
    kept = library(tmp_path)
    kept.remove_partial()
    assert os.listdir(tmp_path / "kept" / "gate") == []
    kept.close()


def test_a_list_that_cannot_be_written_is_an_error_of_that_file_alone(tmp_path: Path) -> None:
    kept = library(tmp_path)
    pages = kept._list.execute("PRAGMA page_count").fetchone()[0]
    kept._list.execute(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(500):
            write(kept, f"{number}-{'n' * 100}.jpg")

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    kept._list.execute("PRAGMA max_page_count=100000")
    written = kept.books.num_written
    assert len(os.listdir(tmp_path / "kept")) == written
    write(kept, "last.jpg")
    kept.close()


def test_pictures_are_decoded_as_they_were_sent() -> None:
    with Image.open(io.BytesIO(frame(7).encoded)) as image:
        assert np.asarray(image)[0, 0].tolist() == pytest.approx([7, 7, 7], abs=2)
