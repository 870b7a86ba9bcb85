"""What `groundstream cameras` and `python -m groundstream.cameras` do."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

from groundstream.errors import SettingsError


def run_cameras(path: Path) -> None:
    """Run a file's cameras until stopped, or until all their sources have ended.

    Raises:
        SettingsError: the file, or something that it names, cannot be used.
    """
    _check_packages()
    from groundstream.cameras.runner import Runner

    async def run() -> None:
        await Runner(path).run()

    asyncio.run(run())


def check_cameras(path: Path) -> str:
    """Read a file and open nothing; says in a line what it holds.

    Raises:
        SettingsError: something in it is wrong.
    """
    _check_packages()
    from groundstream.cameras.schema import read_runner_file

    settings = read_runner_file(path)
    cameras, sinks = ", ".join(settings.cameras), ", ".join(settings.sinks)
    return f"{path} is sound: cameras {cameras}; sinks {sinks}"


def _check_packages() -> None:
    missing = [
        package
        for package, module in (("pyyaml", "yaml"), ("av", "av"), ("pillow", "PIL"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise SettingsError(
            f"{', '.join(missing)} missing; pip install 'groundstream-client[cameras]'"
        )
