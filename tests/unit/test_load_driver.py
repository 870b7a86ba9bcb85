"""The camera fleet of the load benchmark, against the fakes in this process."""

from __future__ import annotations

import io
import time

import pytest
from PIL import Image

from agent.frame import read_frame
from benchmarks.driver import Camera, Journal, drive, with_comment
from benchmarks.load import books_of, growth, seen_by_clients, stage_figures
from groundstream import aio
from groundstream.types import StageLoad
from tests.in_process import running_service
from tests.pictures import encoded_image

JPEG = encoded_image(1, kind="JPEG")
CAMERA = Camera(fps=10.0, duration_s=1.0, queries=("dog",), max_age_ms=500.0)


def test_a_comment_makes_a_frame_new_and_changes_no_pixel() -> None:
    changed = with_comment(JPEG, "3/14")
    assert read_frame(changed).digest != read_frame(JPEG).digest
    pixels = [Image.open(io.BytesIO(encoded)).tobytes() for encoded in (JPEG, changed)]
    assert pixels[0] == pixels[1]


async def test_every_frame_of_every_camera_is_sent_when_due_and_accounted_for() -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        before, started_s = await client.stats(), time.monotonic()
        journals = await drive(service.target, CAMERA, [JPEG], num_streams=3)
        took_s = time.monotonic() - started_s
        after = await client.stats()
    assert took_s >= 0.9
    figures = seen_by_clients(journals, CAMERA) | books_of(journals, before, after)
    assert figures["frames_due"] == 30
    assert figures["results"] + figures["books"]["superseded"] == 30
    assert figures["every_frame_accounted_for"]
    assert figures["goodput"] > 0.5
    assert figures["age_p50_ms"] > 0.0
    # Frames that are new to everybody.
    assert all(journal.books.activity.num_encoded_frames >= 1 for journal in journals)


def test_a_frame_that_is_lost_or_counted_twice_is_noticed() -> None:
    journal = Journal(num_due=2)

    class Books:
        received, answered, tracked_only, superseded = 2, 1, 0, 0
        expired, rejected, failed, in_flight = 0, 0, 0, 0

    journal.books = Books
    stats = type("Stats", (), {"frames_received": 0})
    later = type("Stats", (), {"frames_received": 2})
    assert not books_of([journal], stats, later)["every_frame_accounted_for"]
    Books.tracked_only = 1
    assert books_of([journal], stats, later)["every_frame_accounted_for"]


def test_answers_that_come_too_late_or_never_are_no_goodput() -> None:
    journals = [Journal(num_due=4, age_ms=[10.0, 600.0], queue_ms=[1.0, 2.0], follow_ms=[5.0, 5.0])]
    figures = seen_by_clients(journals, CAMERA)
    assert figures["goodput"] == pytest.approx(0.25)
    assert figures["shell_p50_ms"] == pytest.approx((4.0 + 593.0) / 2)


def test_stage_figures_are_of_the_time_between() -> None:
    before = [StageLoad("language", num_done=10, call_ms=1000.0, queue_ms=0.0, compute_ms=900.0)]
    after = [StageLoad("language", num_done=14, call_ms=1100.0, queue_ms=20.0, compute_ms=960.0)]
    found = stage_figures(before, after, took_s=2.0)["language"]
    assert (found["calls_per_s"], found["queue_ms"], found["compute_ms"]) == (2.0, 5.0, 15.0)
    assert found["rest_ms"] == 5.0


def test_growth_names_what_grew() -> None:
    samples = [{"Language": 500.0, "Ingress": 200.0}, {"Language": 600.0, "Ingress": 200.2}]
    assert growth(samples) == {"Language": [500, 600, 600]}
