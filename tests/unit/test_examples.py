"""The robot against a service, and the programs on the pages."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from examples.robot import run
from tests.in_process import running_service
from tests.pictures import encoded_image


async def test_the_robot_closes_its_books(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encoded_image(number))
    async with running_service() as service:
        books = await run(service.target, str(tmp_path), ["dog"])
    assert books.received == 4
    assert books.in_flight == 0
    assert books.balanced
    assert "from here on the answers are about dog" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", ["README.md", "docs/quickstart.md", "docs/models.md", "docs/robots.md"]
)
async def test_the_python_on_a_page_runs_as_it_stands(page: str) -> None:
    root = Path(__file__).parents[2]
    program, *others = re.findall(
        r"^```python\n(.*?)^```$", (root / page).read_text(), re.DOTALL | re.M
    )
    assert "127.0.0.1:50051" in program
    # This one writes a recording: test_detection_bag.py has what it does.
    assert all("DetectionBag" in other for other in others)
    async with running_service() as service:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program.replace("127.0.0.1:50051", service.target), cwd=root,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, wrong = await asyncio.wait_for(started.communicate(), 120)
    assert started.returncode == 0, wrong.decode()
    assert said.strip()
