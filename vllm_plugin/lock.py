"""Prints a lock with hashes from pip's report on what it would install: `make lock-vllm`.

The hashes are those of the wheels that pip chose, so a lock is for one Python and one platform.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

_LEFT_OUT = re.compile(r"groundstream|torch(vision|audio|codec)$")
"""Our own packages, and those that the service must not see: theirs are other builds of torch."""


def locked(report: dict[str, list[dict[str, dict[str, object]]]]) -> str:
    """Lines for `pip install --require-hashes`, by name."""
    lines = []
    for entry in report["install"]:
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        name = re.sub(r"[-_.]+", "-", str(name)).lower()
        if _LEFT_OUT.match(name):
            continue
        archive = entry["download_info"]["archive_info"]
        assert isinstance(archive, dict)
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{archive['hashes']['sha256']}\n")
    return "# Python 3.11, Linux on x86-64; written by `make lock-vllm`.\n" + "".join(sorted(lines))


if __name__ == "__main__":
    sys.stdout.write(locked(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
