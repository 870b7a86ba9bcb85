"""PixMo-Count: how many of a named thing, in pictures from the web.

Benchmark: Deitke et al., "Molmo and PixMo" (arXiv 2409.17146), allenai/pixmo-count: Parquet rows
of `image_url`, `image_sha256`, `label`, `count` and `points`. Pictures are downloaded by the user,
into a folder, under their SHA-256 or the last part of their address. Knows no metric.
"""

from __future__ import annotations

from pathlib import Path

from agent.evaluation.benchmark_file import picture_of, read_rows, required
from agent.evaluation.counting import CountQuestion
from groundstream.errors import SourceError


def load_pixmo_count(
    table: Path, *, images: Path | None = None, limit: int | None = None
) -> list[CountQuestion]:
    """The first `limit` questions whose picture is there; addresses die, so not all are.

    Raises:
        SourceError: the file cannot be read, a row lacks a field, or no picture exists.
    """
    found = []
    for row in read_rows(table):
        digest, url = str(row.get("image_sha256", "")), str(row.get("image_url", ""))
        name = digest or url.rsplit("/", 1)[-1]
        source = picture_of(row, images, *filter(None, (digest, url.rsplit("/", 1)[-1])))
        if source is not None:
            label, count = str(required(row, "label")), int(required(row, "count"))
            found.append(CountQuestion(name, source, label, count))
    if not found:
        raise SourceError(f"{table} has no picture that exists; name their folder with --images")
    return found[:limit]
