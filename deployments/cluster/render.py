"""Writes rayservice.yaml: the template with the cluster's Serve configuration inside.

    python -m deployments.cluster.render           # `make manifests`

A RayService holds the Serve configuration as one string; so that there is one truth, it is put in
from serve_config.yaml. A test compares the committed file with what this makes.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
TEMPLATE = FOLDER / "rayservice.template.yaml"
SERVE_CONFIG = FOLDER / "serve_config.yaml"
MANIFEST = FOLDER / "rayservice.yaml"


class _Block(str):
    """Text that YAML writes as a block, line by line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def render() -> str:
    """The manifest."""
    documents = list(yaml.safe_load_all(TEMPLATE.read_text(encoding="utf-8")))
    spec = documents[0]["spec"]
    serve_config = yaml.safe_load(SERVE_CONFIG.read_text(encoding="utf-8"))
    plain = yaml.dump(serve_config, Dumper=_Dumper, sort_keys=False)
    spec["serveConfigV2"] = _Block(plain)
    spec["rayClusterConfig"]["rayVersion"] = importlib.metadata.version("ray")
    written = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)
    return (
        f"# Rendered by `make manifests` from {TEMPLATE.name} and {SERVE_CONFIG.name}.\n{written}"
    )


def main() -> None:
    """Write the manifest."""
    MANIFEST.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
