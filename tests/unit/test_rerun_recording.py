"""Rerun recordings, where rerun-sdk is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from groundstream.types import OutgoingFrame
from tests.pictures import encoded_image
from tests.unit.test_exporters import CAT, DOG, result

pytest.importorskip("rerun", reason="pip install 'groundstream-client[rerun]'")


def test_a_stream_becomes_a_file_that_rerun_knows(tmp_path: Path) -> None:
    from groundstream.video.rerun_recording import RerunRecording

    path = tmp_path / "seen.rrd"
    with RerunRecording(path) as recording:
        for sequence in range(3):
            frame = OutgoingFrame(encoded_image(sequence), sequence, 1_700_000_000_000_000_000)
            recording.add_frame(frame, np.zeros((64, 96, 3), dtype=np.uint8))
            recording.add_result(result(sequence, DOG, CAT))
        recording.add_result(result(3))
    assert path.read_bytes()[:3] == b"RRF"
    assert path.stat().st_size > 2_000


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from groundstream.errors import SettingsError
    from groundstream.video.rerun_recording import RerunRecording

    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(SettingsError, match=r"groundstream-client\[rerun\]"):
        RerunRecording(tmp_path / "seen.rrd")
