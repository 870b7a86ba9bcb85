"""The camera runner where only the client is installed: `python -m groundstream.cameras FILE`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from groundstream.cameras.command import check_cameras, run_cameras
from groundstream.errors import AgentError


def main() -> None:
    """Run it; what the caller can mend is told without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m groundstream.cameras")
    parser.add_argument(
        "file", type=Path, help="says which cameras, what to look for, whom to tell"
    )
    parser.add_argument("--check", action="store_true", help="only say what is wrong")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        if given.check:
            print(check_cameras(given.file))
        else:
            run_cameras(given.file)
    except AgentError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
