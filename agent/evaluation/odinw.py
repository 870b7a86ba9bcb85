"""ODinW13: detection in 13 small COCO-format sets of very different pictures; mean of their APs.

Benchmark: Li et al., "Grounded Language-Image Pre-training" (arXiv 2112.03857) and the ELEVATER
toolkit. The folder is the published download unpacked; the files of each set are those of GLIP's
configurations and of mmdetection's configs/grounding_dino/odinw (validation splits). Knows no
metric.
"""

from __future__ import annotations

from pathlib import Path

from agent.evaluation.coco_folder import CocoFolder, load_coco
from agent.evaluation.detection import DetectionScores, evaluate_detection
from agent.pipeline import Pipeline
from groundstream.errors import SourceError

_FILE = "annotations_without_background.json"

DATASETS = {
    "AerialMaritimeDrone": f"AerialMaritimeDrone/large/valid/{_FILE}",
    "Aquarium": f"Aquarium/Aquarium Combined.v2-raw-1024.coco/valid/{_FILE}",
    "CottontailRabbits": f"CottontailRabbits/valid/{_FILE}",
    "EgoHands": f"EgoHands/generic/valid/{_FILE}",
    "NorthAmericaMushrooms": "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco/"
    f"valid/{_FILE}",
    "Packages": f"Packages/Raw/valid/{_FILE}",
    "PascalVOC": f"PascalVOC/valid/{_FILE}",
    "pistols": f"pistols/export/val_{_FILE}",
    "pothole": f"pothole/valid/{_FILE}",
    "Raccoon": f"Raccoon/Raccoon.v2-raw.coco/valid/{_FILE}",
    "ShellfishOpenImages": f"ShellfishOpenImages/raw/valid/{_FILE}",
    "thermalDogsAndPeople": f"thermalDogsAndPeople/valid/{_FILE}",
    "VehiclesOpenImages": f"VehiclesOpenImages/416x416/valid/{_FILE}",
}
"""Set to annotation file, below the benchmark's folder; pictures lie beside the file."""


def load_odinw(folder: Path, *, limit: int | None = None) -> dict[str, CocoFolder]:
    """The sets that are there, each with its first `limit` images.

    Where none of the 13 is, every `NAME/valid` with a file of that name.

    Raises:
        SourceError: no set is there, or one is not COCO JSON.
    """
    files = {name: folder / file for name, file in DATASETS.items() if (folder / file).is_file()}
    if not files:
        files = {file.parts[-3]: file for file in sorted(folder.glob(f"*/valid/{_FILE}"))}
    if not files:
        raise SourceError(f"{folder} holds no set (no {DATASETS['Aquarium']}, for example)")
    return {name: load_coco(file.parent, file, limit=limit) for name, file in files.items()}


async def evaluate_odinw(
    pipeline: Pipeline, sets: dict[str, CocoFolder]
) -> dict[str, DetectionScores]:
    """Scores of each set; every image is asked for every label of its set."""
    return {
        name: await evaluate_detection(pipeline, data, name_regions=False, every_label=True)
        for name, data in sets.items()
    }


def mean_scores(scores: dict[str, DetectionScores]) -> dict[str, float]:
    """AP and AP50 of each set and their plain means over the sets that were there."""
    table = {f"{name} AP": score.AP for name, score in scores.items()}
    number = len(scores)
    return {
        **table,
        "mean AP": sum(score.AP for score in scores.values()) / number,
        "mean AP50": sum(score.AP50 for score in scores.values()) / number,
        "sets": number,
    }
