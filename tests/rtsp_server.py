"""A small RTSP server: an H.264 file as a camera shows it, at its own pace, over TCP.

    python -m tests.rtsp_server PORT VIDEO [--once] [--user NAME:PASSWORD]

In a process of its own, so that it can be killed and stopped (SIGSTOP) like a camera. The file
begins again when it ends, with times that go on; `--once` hangs up instead. Every connection gets
the file from its beginning, with times from a random moment, as RTP has it.
"""

from __future__ import annotations

import argparse
import base64
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

_CLOCK_HZ = 90_000
_MAX_PAYLOAD = 1300
_SINGLE_TIME = 0x80
_FU_A = 28


@dataclass(frozen=True)
class Unit:
    """One access unit: its NAL units, when it is decoded and when it is shown, seconds."""

    nals: tuple[bytes, ...]
    decoded_s: float
    shown_s: float


def read_units(path: Path) -> tuple[list[Unit], float]:
    """Everything in a file, and how long it lasts."""
    units = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(stream):
            for filtered in annexb.filter(packet if packet.size else None):
                if not filtered.size:
                    continue
                nals = tuple(
                    nal.rstrip(b"\0")
                    for nal in re.split(rb"\x00\x00\x00?\x01", bytes(filtered))
                    if nal
                )
                base = filtered.time_base
                units.append(Unit(nals, float(filtered.dts * base), float(filtered.pts * base)))
        rate = float(stream.average_rate)
    return units, max(unit.shown_s for unit in units) + 1.0 / rate


def played(units: list[Unit], length_s: float, *, once: bool) -> Iterator[Unit]:
    """The units, round after round."""
    offset_s = 0.0
    while True:
        for unit in units:
            yield Unit(unit.nals, unit.decoded_s + offset_s, unit.shown_s + offset_s)
        if once:
            return
        offset_s += length_s


class Session:
    """One client."""

    def __init__(
        self, connection: socket.socket, units: list[Unit], length_s: float, once: bool, user: str
    ) -> None:
        self._connection = connection
        self._units, self._length_s, self._once = units, length_s, once
        self._authorization = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self._sending = threading.Lock()
        self._number = random.randrange(1000)

    def serve(self) -> None:
        """Answer until the client hangs up."""
        reader = self._connection.makefile("rb")
        try:
            while line := reader.readline():
                if line.startswith(b"$"):
                    continue  # Reports of the receiver; nobody reads them.
                match = re.match(rb"([A-Z_]+) (\S+) RTSP/1.0", line)
                headers = {}
                while (row := reader.readline().strip()) != b"":
                    name, _, value = row.decode(errors="replace").partition(":")
                    headers[name.lower()] = value.strip()
                if match is not None:
                    self._answer(match[1].decode(), match[2].decode(), headers)
        except (OSError, ValueError):
            pass
        finally:
            self._connection.close()

    def _answer(self, method: str, url: str, headers: dict[str, str]) -> None:
        status, extra, body = "200 OK", "", ""
        if self._authorization and headers.get("authorization") != self._authorization:
            status, extra = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
        elif method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        elif method == "DESCRIBE":
            body = self._description()
            extra = f"Content-Type: application/sdp\r\nContent-Base: {url}/\r\n"
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            extra = "Session: 1\r\nRange: npt=now-\r\n"
        head = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\n{extra}"
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        with self._sending:
            self._connection.sendall(f"{head}{length}\r\n{body}".encode())
        if method == "PLAY" and status.startswith("200"):
            threading.Thread(target=self._play, daemon=True).start()
        if method == "TEARDOWN":
            self._connection.shutdown(socket.SHUT_RDWR)

    def _description(self) -> str:
        sets = [n for unit in self._units[:3] for n in unit.nals if n[0] & 31 in (7, 8)][:2]
        sprop = ",".join(base64.b64encode(nal).decode() for nal in sets)
        return (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            f"a=rtpmap:96 H264/{_CLOCK_HZ}\r\n"
            f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sprop}\r\na=control:track1\r\n"
        )

    def _play(self) -> None:
        start_s, first = time.monotonic(), random.randrange(2**31)
        try:
            for unit in played(self._units, self._length_s, once=self._once):
                time.sleep(max(0.0, start_s + unit.decoded_s - time.monotonic()))
                stamp = (first + round(unit.shown_s * _CLOCK_HZ)) % 2**32
                for index, nal in enumerate(unit.nals):
                    self._send_nal(nal, stamp, is_last=index == len(unit.nals) - 1)
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The client is gone.

    def _send_nal(self, nal: bytes, stamp: int, *, is_last: bool) -> None:
        if len(nal) <= _MAX_PAYLOAD:
            self._send(nal, stamp, is_last)
            return
        body = nal[1:]
        for at in range(0, len(body), _MAX_PAYLOAD):
            part = body[at : at + _MAX_PAYLOAD]
            ends = at + _MAX_PAYLOAD >= len(body)
            flags = (0x80 if at == 0 else 0) | (0x40 if ends else 0) | nal[0] & 31
            self._send(bytes([nal[0] & 0xE0 | _FU_A, flags]) + part, stamp, is_last and ends)

    def _send(self, payload: bytes, stamp: int, marked: bool) -> None:
        self._number = (self._number + 1) % 2**16
        kind = 96 | (0x80 if marked else 0)
        packet = struct.pack(">BBHII", _SINGLE_TIME, kind, self._number, stamp, 7) + payload
        with self._sending:
            self._connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("video", type=Path)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--user", default="")
    given = parser.parse_args()
    units, length_s = read_units(given.video)
    listener = socket.create_server(("127.0.0.1", given.port), reuse_port=False)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        session = Session(connection, units, length_s, given.once, given.user)
        threading.Thread(target=session.serve, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
