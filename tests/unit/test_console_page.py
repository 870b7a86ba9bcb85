"""The console's page in a real browser, as its visitors use it: keyboard, phone, camera.

Runs where Playwright (`pip install -e .[browser]`) and a Chromium are installed, else is skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.in_process import running_service
from tests.pictures import encoded_image
from tests.unit.test_console import running_console

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
PHONE = {"width": 360, "height": 740}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]


@contextlib.asynccontextmanager
async def opened_page(**options: Any) -> AsyncIterator[Any]:
    """The page on a console of a fake service; errors in the browser fail the test."""
    async with (
        running_service() as service,
        running_console(service.target) as url,
        playwright.async_playwright() as tool,
    ):
        browser = await tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport=PHONE, **options)
        errors: list[str] = []
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            await page.goto(url)
            await page.get_by_text("fake, version").wait_for()
            yield page
        finally:
            await browser.close()
        assert errors == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture as a visitor has it."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded_image())
    return path


async def test_a_question_by_keyboard_on_a_phone(photo: Path) -> None:
    async with opened_page() as page:
        reached = []
        for _ in range(6):
            await page.keyboard.press("Tab")
            reached.append(
                await page.evaluate(
                    "() => [document.activeElement.name || document.activeElement.innerText,"
                    " getComputedStyle(document.activeElement).outlineStyle]"
                )
            )
        assert [name for name, _ in reached] == [
            "Skip to the question", "query", "task", "picture", "Ask", "Start camera",
        ]  # fmt: skip
        assert {outline for _, outline in reached} == {"solid"}
        await page.get_by_label("Picture file", exact=True).set_input_files(photo)
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.keyboard.press("Enter")
        answer = page.locator("[aria-live=polite]")
        await page.get_by_text("Found dog.").wait_for()
        assert await answer.inner_text() == "Found dog."
        assert await page.get_by_role("img").get_attribute("aria-label") == "Picture: dog"
        wide = await page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= PHONE["width"]


async def test_a_question_without_a_picture_is_told_what_is_missing() -> None:
    async with opened_page() as page:
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.keyboard.press("Enter")
        assert "Choose a picture" in await page.get_by_role("alert").inner_text()


async def test_no_old_answer_stands_beside_an_error(photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    async with opened_page() as page:
        await page.get_by_label("Picture file", exact=True).set_input_files(photo)
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.keyboard.press("Enter")
        await page.get_by_text("Found dog.").wait_for()
        await page.get_by_label("Picture file", exact=True).set_input_files(broken)
        await page.get_by_role("button", name="Ask", exact=True).click()
        await page.get_by_role("alert").wait_for()
        assert await page.locator("[aria-live=polite]").inner_text() == ""
        assert await page.get_by_role("img").get_attribute("aria-label") == "No picture yet"
        painted = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(Boolean)"
        assert not await page.get_by_role("img").evaluate(painted)


async def test_the_camera_is_watched_and_stopped() -> None:
    async with opened_page(permissions=["camera"]) as page:
        await page.get_by_label("Question", exact=True).fill("dog")
        await page.get_by_role("button", name="Start camera").click()
        await page.get_by_role("button", name="1. browser: dog").wait_for()
        await page.get_by_text("Frame 3").wait_for()
        await page.get_by_role("button", name="Stop camera").click()
        await page.get_by_text("None. Start the camera").wait_for()


async def test_it_is_dark_where_the_visitor_wants_it_dark() -> None:
    lightness = {}
    for scheme in ("light", "dark"):
        async with opened_page(color_scheme=scheme) as page:
            colour = await page.evaluate(
                "() => getComputedStyle(document.documentElement).backgroundColor"
            )
            lightness[scheme] = sum(int(part) for part in colour.strip("rgb()").split(","))
    assert lightness["dark"] < 200 < 600 < lightness["light"]
