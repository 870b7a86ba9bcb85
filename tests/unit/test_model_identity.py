"""A model is known by what stands for its weights; the weights are not read for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from agent.model_directory import find_model
from agent.model_identity import SIDECAR

_WEIGHT_BYTES = 64 << 20


def bytes_read() -> int:
    """By this process, through system calls, from whatever file."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [_WEIGHT_BYTES], "data_offsets": [0, _WEIGHT_BYTES]}}
    ).encode()
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + _WEIGHT_BYTES)
    with (path / "upn.pth").open("wb") as file:
        file.truncate(_WEIGHT_BYTES)
    return path


def test_weights_are_not_read(folder: Path) -> None:
    before = bytes_read()
    first = find_model(str(folder)).digest
    once = bytes_read()
    assert once - before < 200_000
    assert find_model(str(folder)).digest == first
    assert bytes_read() - once < 20_000


def test_whatever_changes_is_another_model(folder: Path, tmp_path: Path) -> None:
    digests = {find_model(str(folder)).digest}
    weights = folder / "model.safetensors"
    state = weights.stat()
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    digests.add(find_model(str(folder)).digest)
    with weights.open("ab") as file:
        file.write(b"\0")
    digests.add(find_model(str(folder)).digest)
    (folder / "config.json").write_text('{"a": 1}')
    digests.add(find_model(str(folder)).digest)
    (folder / "vocab.json").write_text("{}")
    digests.add(find_model(str(folder)).digest)
    digests.add(find_model(str(folder), proposal_network="none").digest)
    assert len(digests) == 6


def test_a_copy_that_keeps_times_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    digest = find_model(str(folder)).digest
    copy = tmp_path / "copy" / "model"
    shutil.copytree(folder, copy)
    assert find_model(str(copy)).digest == digest
    (copy / SIDECAR).unlink()
    assert find_model(str(copy)).digest == digest


@pytest.mark.parametrize(
    "text", ["", "[]", '{"model.safetensors": 1}', '{"model.safetensors": [1]}']
)
def test_a_damaged_note_is_written_anew(folder: Path, text: str) -> None:
    digest = find_model(str(folder)).digest
    (folder / SIDECAR).write_text(text)
    assert find_model(str(folder)).digest == digest


def test_the_embedded_model_gets_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_model().path
    assert not (folder / SIDECAR).exists()
    monkeypatch.chdir(folder.parent)
    assert find_model(folder.name).path.resolve() == folder.resolve()
    find_model(f"./{folder.name}")
    assert not (folder / SIDECAR).exists()


def test_a_folder_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    assert find_model(str(folder)).digest == find_model(str(folder)).digest
    assert not (folder / SIDECAR).exists()
