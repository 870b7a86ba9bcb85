"""gRPC passes over options that it does not know, so their names are compared with its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from deployments.front_end import server
from groundstream import channel


@pytest.mark.parametrize("module", [server, channel])
def test_every_option_is_one_that_grpc_knows(module) -> None:  # type: ignore[no-untyped-def]
    library = Path(cygrpc.__file__).read_bytes()
    names = re.findall(r'\("(grpc\.[a-z0-9_.]+)"', Path(module.__file__).read_text())
    assert len(names) >= 6
    assert [name for name in names if name.encode() not in library] == []
