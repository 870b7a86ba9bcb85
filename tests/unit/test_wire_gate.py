"""The gate in `make check` lets the wire grow and refuses what would break a client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"


def verdict(tmp_path: Path, old: str, new: str) -> subprocess.CompletedProcess[str]:
    """What the gate says when `old` stands as `new` in the proto."""
    proto = (ROOT / "protos/vision_agent.proto").read_text()
    assert old in proto
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos/vision_agent.proto").write_text(proto.replace(old, new, 1))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    command = [str(BUF), "breaking", "--against", str(ROOT / "protos/baseline.binpb")]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)


def test_a_new_field_passes(tmp_path: Path) -> None:
    grown = verdict(
        tmp_path, "  bytes encoded_image = 3;", "  bytes encoded_image = 3;\n  uint32 new = 99;"
    )
    assert (grown.returncode, grown.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("uint64 sequence = 1;", "uint64 sequence = 77;"),  # another number
        ("float confidence = 3;", "double confidence = 3;"),  # another type
        ("  string text = 2;\n", ""),  # gone
        ("TASK_KIND_COUNT = 2;", "TASK_KIND_COUNT = 9;"),  # an enum value renumbered
        ("rpc Ground(", "rpc Locate("),  # a method renamed
    ],
)
def test_what_breaks_clients_does_not(tmp_path: Path, old: str, new: str) -> None:
    broken = verdict(tmp_path, old, new)
    assert broken.returncode != 0
    assert "vision_agent.proto" in broken.stdout
