"""`groundstream ground`: what is refused before the model loads, and what is written as it goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from agent.grounded_output import output_beside
from agent.pipeline import Pipeline
from agent.region_cache import MemoryRegionCache
from deployments.cli import build_app
from deployments.cli.options import ModelChoice
from groundstream.errors import AgentError, InvalidQuery, SettingsError, SourceError
from groundstream.types import OutgoingFrame
from groundstream.video.annotated_video import AnnotatedVideo
from groundstream.video.drawing import label_colour
from groundstream.video.sources import open_source
from groundstream.video.writer import VideoWriter
from tests.fakes import FakeStages

SIZE = (96, 64)
VARIABLE_S = [0.0, 0.1, 0.9, 1.0, 2.5]


def run(*arguments: object) -> object:
    return CliRunner().invoke(build_app(), [str(a) for a in arguments])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", SIZE, (200, 30, 30)).save(path)
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five frames at uneven times."""
    path = tmp_path / "video.mp4"
    with VideoWriter(path, fps=10.0) as writer:
        for number, at_s in enumerate(VARIABLE_S):
            writer.write(np.full((64, 96, 3), 40 * number, dtype=np.uint8), at_s)
    return path


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a model."""
    made = Pipeline(FakeStages(), MemoryRegionCache(budget_bytes=2**20), model_digest="fake")
    monkeypatch.setattr(ModelChoice, "pipeline", lambda _: made)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads one has checked too late."""
    monkeypatch.setattr(ModelChoice, "pipeline", lambda _: pytest.fail("the model was loaded"))


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(picture.time) for picture in container.decode(video=0)]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("x.txt", "what kind of file"),
        ("x", "what kind of file"),
        ("no/folder/x.png", "there is no folder"),
        ("folder.png", "it is a folder"),
        ("photo.png", "is the source itself"),
    ],
)
def test_a_bad_place_is_refused_first(image: Path, output: str, message: str) -> None:
    (image.parent / "folder.png").mkdir()
    before = image.read_bytes()
    result = run("ground", image, "dog", "--output", image.parent / output)
    assert isinstance(result.exception, AgentError)
    assert message in str(result.exception)
    assert image.read_bytes() == before


def test_the_answer_lies_beside_a_source_whose_name_is_no_text(image: Path) -> None:
    renamed = image.rename(image.with_name("photo\udcff.png"))
    assert output_beside(str(renamed)) == image.with_name("photo\udcff_grounded.png")


@pytest.mark.usefixtures("no_model")
def test_a_read_only_place_is_refused_first(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.grounded_output.os.access", lambda *_: False)
    result = run("ground", image, "dog")
    assert isinstance(result.exception, SourceError)
    assert "cannot write" in str(result.exception)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("contents", [b"", b"only words"])
@pytest.mark.parametrize("name", ["a.jpg", "a.mp4", "folder"])
def test_a_bad_source_is_refused_first(tmp_path: Path, name: str, contents: bytes) -> None:
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        Image.new("RGB", SIZE).save(source / "1.png")
        (source / "2.png").write_bytes(contents)
    else:
        source.write_bytes(contents)
    assert isinstance(run("ground", source, "dog").exception, SourceError)


@pytest.mark.usefixtures("no_model")
def test_bad_options_are_refused_first(image: Path, video: Path) -> None:
    for bad in (("--limit", 0), ("--task", "region_ocr", "--region", -1)):
        assert run("ground", image, "dog", *bad).exit_code == 2
    for device in ("cuda:99", "tpu9", "meta"):
        assert isinstance(run("ground", image, "dog", "--device", device).exception, SettingsError)
    one = run("ground", video, "dog", "--output", video.parent / "o.png")
    assert "several" in str(one.exception)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "region_caption", "--region", 0, 1, 2), "takes no words.*'1'.*--region 0 --re"),
        (("dog", "--task", "grounded_caption"), "takes no words.*'dog'$"),
        (("dog", "--region", 3), "not about a box"),
        (("dog", "photo.png"), "one picture at a time: 'photo.png' is a file"),
    ],
)
def test_what_a_task_does_not_take_is_refused(
    image: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(image.parent)
    with pytest.raises(InvalidQuery, match=message):
        raise run("ground", image, *arguments).exception


@pytest.mark.usefixtures("pipeline")
def test_a_word_that_a_file_or_folder_happens_to_have_is_asked(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    Path("cat").write_text("")
    Path("dog").mkdir()
    assert run("ground", image, "cat", "dog", "x" * 300 + ".").exit_code == 0


@pytest.mark.usefixtures("pipeline")
def test_the_table_tells_a_count(image: Path) -> None:
    shown = run("ground", image, "dog", "absent cat", "--task", "count").output
    assert re.findall(r"(\w+) +│ count: (\d)", shown) == [("dog", "4"), ("cat", "0")]


@pytest.mark.usefixtures("pipeline")
def test_the_box_that_is_asked_about_is_told_and_drawn(image: Path) -> None:
    asked = ("ground", image, "--task", "region_caption", "--region", 1, "--region", 3)
    shown = run(*asked).output
    assert re.findall(r"box (\d) +│ thing (\d) +│ ([\d ]+?) +│", shown) == [
        ("1", "1", "48 0 96 32"),
        ("3", "3", "48 32 96 64"),
    ]
    with Image.open(image.parent / "photo_grounded.png") as drawn:
        assert drawn.getpixel((95, 20)) == label_colour("box 1")
        assert drawn.getpixel((95, 60)) == label_colour("box 3")
    answers = json.loads(run(*asked, "--json").stdout.splitlines()[-1])["answers"]
    assert [answer["region_box"] for answer in answers] == [[48, 0, 96, 32], [48, 32, 96, 64]]
    (plain,) = json.loads(run("ground", image, "dog", "--json").stdout.splitlines()[-1])["answers"]
    assert plain["region_box"] is None


@pytest.mark.usefixtures("pipeline")
def test_boxes_like_another_are_told_in_words(image: Path) -> None:
    shown = run("ground", image, "--task", "visual_prompt", "--region", 2).output
    assert re.search(r"│ box 2 +│ 0 32 48 64 +│ +│", shown)
    assert re.search(r"│ like box 2 +│ 0 0 48 32 +│ 0\.\d\d", shown)
    assert "<region" not in shown


def test_the_device_is_asked_for_by_every_command_that_takes_one() -> None:
    result = run("eval", "tracking", "--device", "cuda:99")
    assert isinstance(result.exception, SettingsError)


@pytest.mark.parametrize("command", ["suite", "proposals", "clutter", "compose"])
def test_missing_artwork_is_told_first(tmp_path: Path, command: str) -> None:
    arguments = ["--artwork", tmp_path / "none"]
    arguments += ["--out" if command == "compose" else "--cache", tmp_path / "cache"]
    result = run("eval", command, *arguments)
    assert isinstance(result.exception, SourceError)
    assert "train artwork" in str(result.exception)


@pytest.mark.usefixtures("pipeline")
def test_pictures_of_any_kind_are_written(image: Path) -> None:
    for name in ("o.png", "o.jpg", "o.webp", "o.bmp"):
        result = run("ground", image, "dog", "--output", image.parent / name)
        assert result.exit_code == 0, result.output
        with Image.open(image.parent / name) as written:
            assert written.size == SIZE
    assert run("ground", image, "dog").exit_code == 0
    assert (image.parent / "photo_grounded.png").is_file()


@pytest.mark.usefixtures("pipeline")
def test_an_annotated_video_keeps_the_times_of_its_source(video: Path) -> None:
    for name in ("o.mp4", "o.m4v", "o.mkv", "o.mov"):
        assert run("ground", video, "dog", "--output", video.parent / name).exit_code == 0
        assert times_of(video.parent / name) == pytest.approx(VARIABLE_S, abs=0.002)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("name", ["moving.gif", "moving.m4v"])
def test_everything_that_moves_is_written_as_a_video(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name.endswith(".gif"):
        pictures = [Image.new("RGB", SIZE, (60 * n, 0, 0)) for n in range(4)]
        pictures[0].save(source, save_all=True, append_images=pictures[1:], duration=100)
    else:
        with VideoWriter(source, fps=10.0) as writer:
            for _ in range(4):
                writer.write(np.zeros((64, 96, 3), dtype=np.uint8))
    assert run("ground", source, "dog").exit_code == 0
    assert len(times_of(tmp_path / "moving_grounded.mp4")) == 4


@pytest.mark.usefixtures("pipeline")
def test_a_folder_whose_first_picture_is_tiny(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(1, 1), SIZE, (200, 20)]):
        Image.new("RGB", size, (0, 255, 0)).save(folder / f"{number}.png")
    assert run("ground", folder, "dog").exit_code == 0
    with av.open(str(tmp_path / "pictures_grounded.mp4")) as container:
        shapes = [p.to_ndarray(format="rgb24").shape for p in container.decode(video=0)]
    assert shapes == [(64, 200, 3)] * 3


@pytest.mark.usefixtures("pipeline")
def test_what_was_done_before_an_interrupt_is_written(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(video))

    class Interrupted:
        fps, is_live = source.fps, False
        starts = 0

        def __iter__(self) -> Iterator[object]:
            for number, picture in enumerate(source):
                if number == 3:
                    raise KeyboardInterrupt
                yield picture

    monkeypatch.setattr("groundstream.video.sources.open_source", lambda *_, **__: Interrupted())
    result = run("ground", video, "dog", "--json")
    assert result.exit_code != 0
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert len(times_of(video.parent / "video_grounded.mp4")) == 3


def test_a_video_of_no_frames_leaves_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "o.mp4", fps=10.0).close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SourceError, match="a video is one of"):
        VideoWriter(tmp_path / "o.jpg", fps=10.0)


def test_what_watch_writes_keeps_the_times_too(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    with AnnotatedVideo(path, fps=10.0) as writer:
        for number, at_s in enumerate(VARIABLE_S):
            writer.add_frame(OutgoingFrame(b"", number), np.zeros((64, 96, 3), np.uint8), at_s)
    assert times_of(path) == pytest.approx(VARIABLE_S, abs=0.002)


def test_the_rate_stays_where_there_are_no_times(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    with VideoWriter(path, fps=20.0) as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 96, 3), dtype=np.uint8))
    assert times_of(path) == pytest.approx([0.0, 0.05, 0.1], abs=0.001)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == Fraction(20)
