"""What a vision stage of the embedded model costs to load, and what transformers would add.

Each is loaded in processes of its own, by turns as it is and with transformers' models imported
first, which it does without. Prints medians of processor seconds and resident memory, and their
ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

STAGES = {
    "proposals": "from agent.proposer import Proposer; Proposer.from_pretrained('pocket')",
    "primary encoder": "from agent.encoders import PrimaryEncoderStage; "
    "PrimaryEncoderStage.from_pretrained('pocket')",
}
_FIRST = "from transformers import LlamaModel; "
_FIGURES = (
    "; import json, psutil; own = psutil.Process(); used = own.cpu_times();"
    "print(json.dumps([used.user + used.system, own.memory_info().rss / 2**20]))"
)


def measure(code: str) -> tuple[float, float]:
    """Processor seconds and resident MiB of a process that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + _FIGURES], check=True, capture_output=True, text=True
    )
    seconds, mebibytes = json.loads(done.stdout)
    return seconds, mebibytes


def main() -> None:
    """Measure both by turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    table = Table("stage", "processor s", "with transformers", "MiB", "with transformers", "ratios")
    figures: dict[str, dict[str, float]] = {}
    for name, code in STAGES.items():
        lean, heavy = [], []
        for _ in range(rounds):
            lean.append(measure(code))
            heavy.append(measure(_FIRST + code))
        (s, mib), (with_s, with_mib) = (
            [statistics.median(column) for column in zip(*taken, strict=True)]
            for taken in (lean, heavy)
        )
        figures[name] = {"s": s, "with_s": with_s, "mib": mib, "with_mib": with_mib}
        table.add_row(
            name, f"{s:.1f}", f"{with_s:.1f}", f"{mib:.0f}", f"{with_mib:.0f}",
            f"{s / with_s:.2f}, {mib / with_mib:.2f}",
        )  # fmt: skip
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
