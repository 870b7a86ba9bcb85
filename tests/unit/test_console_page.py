"""The console's page in a real browser, as its visitors use it: mouse, finger, keyboard, phone.

Runs where Playwright (`pip install -e .[browser]`) and a Chromium are installed, else is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deployments.console.app import ConsoleSettings, cameras_from_sources
from groundstream.cameras.place_file import read_place_file
from tests.in_process import running_service
from tests.pictures import encoded_image
from tests.unit.test_console import PORT_HOSTS, running_console
from tests.unit.test_console_events import jpeg

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
PHONE = {"width": 360, "height": 740}
PAGES = ("", "camera/gate", "events", "ask", "figures")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]


@dataclasses.dataclass
class Visit:
    """A page that is open in a browser, on a console of a fake service."""

    page: Any
    url: str
    console: contextlib.AsyncExitStack
    """Closed, the console is gone."""
    errors: list[str]

    async def go(self, path: str) -> None:
        """To another of its pages."""
        await self.page.goto(f"{self.url}#/{path}")

    async def picture(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the camera's picture, once there is one."""
        await self.page.locator(".state.live").wait_for()
        await self.page.get_by_text("Frame ").wait_for(state="attached")
        box = await self.page.locator("svg.places").bounding_box()
        return box["x"], box["y"], box["width"], box["height"]

    async def save(self, name: str) -> None:
        """What is drawn, under a name."""
        await self.page.get_by_label("Name", exact=True).fill(name)
        await self.page.get_by_role("button", name="Save").click()
        await self.page.get_by_role("button", name=name).wait_for()


@contextlib.asynccontextmanager
async def opened_page(
    settings: ConsoleSettings | None = None, *, viewport: dict[str, int] | None = None, **more: Any
) -> AsyncIterator[Visit]:
    """The page; errors in the browser fail the test."""
    async with (
        running_service() as service,
        contextlib.AsyncExitStack() as console,
        playwright.async_playwright() as tool,
    ):
        url = await console.enter_async_context(running_console(service.target, settings))
        browser = await tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport=viewport or PHONE, **more)
        page.set_default_timeout(20_000)
        errors: list[str] = []
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            await page.goto(url)
            await page.get_by_text("fake, version").wait_for()
            yield Visit(page, url, console, errors)
        finally:
            await browser.close()
        assert errors == []


@pytest.fixture
def settings(tmp_path: Path) -> ConsoleSettings:
    """One camera, `gate`, in front of which a thing moves; its zones are kept in zones.yaml."""
    folder = tmp_path / "gate"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    cameras = cameras_from_sources([str(folder)], ["dog"])
    return ConsoleSettings(cameras, tmp_path / "zones.yaml", hosts=PORT_HOSTS)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture as a visitor has it."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded_image())
    return path


def recorded(number: int, kind: str, **more: Any) -> dict[str, Any]:
    """An event as the console tells it."""
    event = {"id": f"id-{number}", "kind": kind, "query": "dog", "track_id": 3, **more}
    return {
        "id": f"id-{number}", "type": "event", "camera": "gate", "number": number,
        "time_ns": time.time_ns(), "event": event,
    }  # fmt: skip


# ---- the wall ----


async def test_the_wall_shows_a_camera_once_with_what_it_sees_now(
    settings: ConsoleSettings,
) -> None:
    async with opened_page(settings) as visit:
        await visit.page.get_by_role("img", name="gate: dog").wait_for()
        tiles = visit.page.locator(".wall > li")
        assert await tiles.count() == 1
        assert "live" in await tiles.inner_text()
        coloured = "() => document.querySelector('canvas').getContext('2d')"
        width = await visit.page.evaluate(f"{coloured}.canvas.width")
        assert width == 320  # as it was sent, not the empty canvas


async def test_boxes_that_were_followed_for_long_are_said_to_be_so() -> None:
    async with opened_page() as visit:
        said = await visit.page.evaluate(
            """import("/static/parts.mjs").then(({ trailing }) => [[], [300], [300, 3400]].map(
                (ages) => ages.map((age_ms) => ({ age_ms })),
            ).map((detections) => trailing({ answers: [{ detections }] })))"""
        )
    assert said == ["", "", "boxes followed for 3.4 s"]


async def test_a_picture_whose_stream_has_ended_is_marked_as_old(
    settings: ConsoleSettings,
) -> None:
    gate = dataclasses.replace(settings.cameras["gate"], repeat=False)
    async with opened_page(dataclasses.replace(settings, cameras={"gate": gate})) as visit:
        await visit.page.locator(".picture.stale").wait_for()
        label = await visit.page.locator("canvas").get_attribute("aria-label")
        assert label.startswith("gate: ended: this picture is ")
        shown = await visit.page.locator(".old").inner_text()
        assert shown.startswith("ended: this picture is ")
        tint = await visit.page.evaluate(
            "getComputedStyle(document.querySelector('canvas')).filter"
        )
        assert "grayscale" in tint
        await visit.go("camera/gate")
        await visit.page.locator(".picture.stale .old").wait_for()


async def test_nothing_looks_live_when_the_console_is_gone(settings: ConsoleSettings) -> None:
    async with opened_page(settings) as visit:
        await visit.page.locator(".state.live").wait_for()
        await visit.console.aclose()
        await visit.page.locator(".state.away").wait_for()
        await visit.page.locator(".picture.stale").wait_for()
        assert await visit.page.locator(".state.live").count() == 0
        visit.errors.clear()  # The browser says that nobody answers, as it should.
        await visit.page.close()


# ---- zones and lines ----


async def test_a_camera_is_live_again_when_the_console_is_back(settings: ConsoleSettings) -> None:
    async with opened_page(settings) as visit, running_service() as service:
        await visit.go("camera/gate")
        await visit.picture()
        await visit.console.aclose()
        await visit.page.locator(".state.away").wait_for()
        port = int(visit.url.rpartition(":")[2])
        async with running_console(service.target, settings, port=port):
            await visit.picture()
            await visit.page.get_by_text("Picture of 0.").wait_for()
            await visit.page.get_by_role("textbox", name="Question").fill("dog")
            await visit.page.get_by_role("button", name="Ask", exact=True).click()
            await visit.page.get_by_text("The picture that was asked about, at").wait_for()
        await visit.page.locator(".state.away").wait_for()
        visit.errors.clear()  # The browser tells of connections that are refused.


async def test_a_zone_is_drawn_with_the_mouse(settings: ConsoleSettings) -> None:
    async with opened_page(settings, viewport={"width": 1280, "height": 900}) as visit:
        await visit.go("camera/gate")
        left, top, width, height = await visit.picture()
        page, mouse = visit.page, visit.page.mouse
        await page.get_by_role("button", name="New zone").click()
        await mouse.move(left + 0.25 * width, top + 0.25 * height)
        await mouse.down()
        await mouse.move(left + 0.5 * width, top + 0.5 * height, steps=4)
        await mouse.move(left + 0.75 * width, top + 0.75 * height, steps=4)
        await mouse.up()
        await page.get_by_label("Tell of stays of, s").fill("2.5")
        await visit.save("yard")
        (zone,) = read_place_file(settings.place_file)["gate"].zones
        assert near(zone.points, [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)])
        assert zone.dwell_s == 2.5
        # One of its corners elsewhere, another name.
        await page.get_by_role("button", name="zone yard").click()
        left, top, width, height = await visit.picture()
        await mouse.move(left + 0.75 * width, top + 0.75 * height)
        await mouse.down()
        await mouse.move(left + 0.9 * width, top + 0.9 * height, steps=4)
        await mouse.up()
        await visit.save("court")
        (zone,) = read_place_file(settings.place_file)["gate"].zones
        assert zone.name == "court"
        assert near(zone.points, [(0.25, 0.25), (0.75, 0.25), (0.9, 0.9), (0.25, 0.75)])


async def test_a_zone_is_drawn_with_a_finger_on_a_phone(settings: ConsoleSettings) -> None:
    async with opened_page(settings, has_touch=True, is_mobile=True) as visit:
        await visit.go("camera/gate")
        await visit.picture()
        await visit.page.get_by_role("button", name="New zone").tap()
        corners = [(0.2, 0.2), (0.8, 0.3), (0.5, 0.8)]
        for x, y in [*corners, corners[0]]:
            left, top, width, height = await visit.picture()
            await visit.page.touchscreen.tap(left + x * width, top + y * height)
        assert await visit.page.locator("polygon.zone").count() == 1
        await visit.save("yard")
        (zone,) = read_place_file(settings.place_file)["gate"].zones
        assert near(zone.points, corners)


async def test_a_line_is_drawn_with_a_finger_that_slides(settings: ConsoleSettings) -> None:
    async with opened_page(settings, has_touch=True, is_mobile=True) as visit:
        await visit.go("camera/gate")
        await visit.picture()
        await visit.page.get_by_role("button", name="New line").tap()
        left, top, width, height = await visit.picture()
        finger = await visit.page.context.new_cdp_session(visit.page)
        scrolled = await visit.page.evaluate("scrollY")
        for kind, share in (("Start", 0.8), ("Move", 0.5), ("Move", 0.2), ("End", None)):
            touching = (
                [] if share is None else [{"x": left + 0.5 * width, "y": top + share * height}]
            )
            await finger.send(
                "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touching}
            )
        assert await visit.page.evaluate("scrollY") == scrolled
        await visit.save("kerb")
        (line,) = read_place_file(settings.place_file)["gate"].lines
        assert near(line.points, [(0.5, 0.8), (0.5, 0.2)])


async def test_a_zone_is_drawn_by_keyboard_and_a_mistake_is_told(
    settings: ConsoleSettings,
) -> None:
    async with opened_page(settings) as visit:
        page = visit.page
        await visit.go("camera/gate")
        await visit.picture()
        await page.get_by_role("button", name="New zone").focus()
        await page.keyboard.press("Enter")
        await press(page, "Enter", "ArrowRight", "Enter", "ArrowDown", "Enter")
        await press(page, "ArrowLeft", "Shift+ArrowUp", "Backspace", "Enter")
        await press(page, "ArrowUp", "ArrowUp", "ArrowRight", "Enter")
        await page.get_by_role("button", name="Save").focus()
        await page.keyboard.press("Enter")
        assert "crosses itself" in await page.get_by_role("alert").inner_text()
        visit.errors.clear()  # The browser notes every answer that is a refusal.
        await page.locator(".corner").last.focus()
        await page.keyboard.press("Delete")
        await visit.save("yard")
        (zone,) = read_place_file(settings.place_file)["gate"].zones
        assert near(zone.points, [(0.5, 0.5), (0.55, 0.5), (0.5, 0.54)])
        await page.get_by_role("button", name="zone yard").focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Remove").click()
        await page.get_by_text("None yet.").wait_for()
        assert not read_place_file(settings.place_file)["gate"]


# ---- events ----


async def test_events_come_by_themselves(settings: ConsoleSettings) -> None:
    async with opened_page(settings) as visit:
        await visit.page.get_by_text("dog #1 appeared").first.wait_for()
        await visit.go("camera/gate")
        await visit.page.get_by_text("dog #1 appeared").first.wait_for()


async def test_a_retracted_event_is_struck_out_at_once_and_after_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [
        recorded(1, "APPEARED"),
        recorded(2, "LEFT"),
        recorded(3, "RETRACTED", retracts="id-1"),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    async with opened_page(ConsoleSettings(event_file=path, hosts=PORT_HOSTS)) as visit:
        rows = visit.page.locator(".events li")
        await rows.nth(1).wait_for()
        assert await rows.count() == 2
        assert await visit.page.locator(".retracted del").inner_text() == "dog #3 appeared"

        sockets: list[Any] = []
        await visit.page.route_web_socket(
            "**/api/events/new", lambda socket: sockets.append(socket)
        )
        await visit.page.reload()
        await visit.go("events")
        await rows.nth(1).wait_for()
        crossed = recorded(4, "LINE_CROSSED", place="kerb", direction="TO_LEFT")
        sockets[-1].send(json.dumps({"events": [crossed]}))
        await visit.page.get_by_text("dog #3 crossed kerb to the left").wait_for()
        assert await visit.page.locator(".retracted").count() == 1
        taken_back = [recorded(5, "RETRACTED", retracts="id-4"), recorded(6, "LEFT")]
        sockets[-1].send(json.dumps({"events": taken_back}))
        await rows.nth(3).wait_for()
        struck = await visit.page.locator(".retracted del").all_inner_texts()
        assert struck == ["dog #3 crossed kerb to the left", "dog #3 appeared"]
        await visit.page.get_by_label("Kind").select_option("LEFT")
        assert await rows.count() == 2


# ---- questions ----


async def test_a_camera_is_asked_about_its_picture(settings: ConsoleSettings) -> None:
    async with opened_page(settings) as visit:
        await visit.go("camera/gate")
        await visit.picture()
        await visit.page.get_by_label("Question", exact=True).fill("cat")
        await visit.page.keyboard.press("Enter")
        await visit.page.get_by_text("Found cat.").wait_for()
        name = "The picture that was asked about: cat"
        assert await visit.page.get_by_role("img", name=name).count() == 1


async def test_a_question_by_keyboard_on_a_phone(photo: Path) -> None:
    async with opened_page() as visit:
        page = visit.page
        await visit.go("ask")
        # A new page begins at its heading, for those who hear it and those who have no mouse.
        await page.wait_for_function("document.activeElement.id === 'title'")
        reached = []
        for _ in range(5):
            await page.keyboard.press("Tab")
            reached.append(
                await page.evaluate(
                    "() => [document.activeElement.name || document.activeElement.innerText,"
                    " getComputedStyle(document.activeElement).outlineStyle]"
                )
            )
        assert [name for name, _ in reached] == ["query", "task", "picture", "Ask", "Start camera"]
        assert {outline for _, outline in reached} == {"solid"}
        await page.get_by_label("Picture file", exact=True).set_input_files(photo)
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.keyboard.press("Enter")
        await page.get_by_text("Found dog.").wait_for()
        assert await page.get_by_role("img").get_attribute("aria-label") == (
            "The picture that was asked about: dog"
        )


async def test_a_question_without_a_picture_is_told_what_is_missing() -> None:
    async with opened_page() as visit:
        await visit.go("ask")
        await visit.page.get_by_label("Question", exact=True).fill("dog")
        await visit.page.keyboard.press("Enter")
        assert "Choose a picture" in await visit.page.get_by_role("alert").inner_text()


async def test_no_old_answer_stands_beside_an_error(photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    async with opened_page() as visit:
        page = visit.page
        await visit.go("ask")
        await page.get_by_label("Picture file", exact=True).set_input_files(photo)
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.keyboard.press("Enter")
        await page.get_by_text("Found dog.").wait_for()
        await page.get_by_label("Picture file", exact=True).set_input_files(broken)
        await page.get_by_role("button", name="Ask", exact=True).click()
        await page.get_by_role("alert").wait_for()
        assert await page.get_by_text("Found dog.").count() == 0
        assert await page.get_by_role("img").count() == 0
        visit.errors.clear()  # The browser notes every answer that is a refusal.


async def test_the_camera_of_the_device_is_watched_and_stopped() -> None:
    async with opened_page(permissions=["camera"]) as visit:
        page = visit.page
        await visit.go("ask")
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.get_by_role("button", name="Start camera").click()
        await page.get_by_role("img", name="Your camera: dog").wait_for()
        await visit.go("")
        await page.get_by_role("img", name="browser-1: dog").wait_for()
        await visit.go("ask")
        await page.get_by_role("button", name="Stop camera").click()
        await visit.go("")
        await page.locator(".state.ended").wait_for()


# ---- how it looks ----


async def test_every_page_fits_a_phone_and_the_menu_leads_to_it(
    settings: ConsoleSettings,
) -> None:
    async with opened_page(settings) as visit:
        await visit.page.locator(".state.live").wait_for()
        for path in PAGES:
            await visit.go(path)
            await visit.page.locator("h1").wait_for()
            wide = await visit.page.evaluate("document.documentElement.scrollWidth")
            assert (path, wide <= PHONE["width"]) == (path, True)
        for name, heading in (("Events", "Events of the last day"), ("Figures", "Figures")):
            await visit.page.get_by_role("link", name=name, exact=True).focus()
            await visit.page.keyboard.press("Enter")
            await visit.page.get_by_role("heading", name=heading, exact=True).wait_for()
            assert await visit.page.evaluate("document.activeElement.id") == "title"
        await visit.page.get_by_role("cell", name="language").wait_for()


async def test_it_is_dark_where_the_visitor_wants_it_dark() -> None:
    lightness = {}
    for scheme in ("light", "dark"):
        async with opened_page(color_scheme=scheme) as visit:
            colour = await visit.page.evaluate(
                "() => getComputedStyle(document.documentElement).backgroundColor"
            )
            lightness[scheme] = sum(int(part) for part in colour.strip("rgb()").split(","))
    assert lightness["dark"] < 200 < 600 < lightness["light"]


async def press(page: Any, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


def near(points: Sequence[tuple[float, float]], wanted: Sequence[tuple[float, float]]) -> bool:
    """Whether they are within a hundredth of the picture of each other."""
    return len(points) == len(wanted) and all(
        abs(a - b) < 0.01
        for one, other in zip(points, wanted, strict=True)
        for a, b in zip(one, other, strict=True)
    )
