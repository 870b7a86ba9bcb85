"""The files for a cluster: read by our own code, consistent with each other and with the code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from agent.settings import load_serve_config
from deployments.app import bind
from deployments.autoscaling import OpenStreams
from deployments.cluster.render import FOLDER, MANIFEST, SERVE_CONFIG, render

CRD = os.environ.get("RAYSERVICE_CRD")


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def test_the_committed_manifest_is_what_is_rendered() -> None:
    assert MANIFEST.read_text() == render(), "run `make manifests`"


def test_the_manifest_holds_the_serve_configuration(documents: list[dict[str, Any]]) -> None:
    spec = documents[0]["spec"]
    assert yaml.safe_load(spec["serveConfigV2"]) == yaml.safe_load(SERVE_CONFIG.read_text())
    for template in (
        spec["rayClusterConfig"]["headGroupSpec"]["template"],
        *(group["template"] for group in spec["rayClusterConfig"]["workerGroupSpecs"]),
    ):
        (container,) = template["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


def test_ray_and_our_settings_both_accept_the_configuration() -> None:
    config = load_serve_config(SERVE_CONFIG)
    bind(config.service, config.deployments)
    schema = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_CONFIG.read_text()))
    (application,) = schema.applications
    names = {deployment.name for deployment in application.deployments}
    assert names == {"Ingress", "Proposal", "PrimaryEncoder", "AuxiliaryEncoder", "Language"}


@pytest.mark.parametrize("path", [SERVE_CONFIG, FOLDER.parent / "serve_config.yaml"])
def test_an_update_finds_room_for_the_new_front_end_beside_the_old(path: Path) -> None:
    (ingress,) = (d for d in load_serve_config(path).deployments if d.name == "Ingress")
    assert ingress.max_surge_percent == 100
    assert ingress.max_replicas_per_node is None or ingress.max_replicas_per_node >= 2


def test_the_front_end_scales_by_streams() -> None:
    loaded = yaml.safe_load(SERVE_CONFIG.read_text())
    (ingress,) = (d for d in loaded["applications"][0]["deployments"] if d["name"] == "Ingress")
    policy = ingress["autoscaling_config"]["policy"]
    assert policy["policy_function"] == f"{OpenStreams.__module__}:{OpenStreams.__name__}"
    OpenStreams(**policy["policy_kwargs"])


def test_services_find_their_pods(documents: list[dict[str, Any]]) -> None:
    groups = documents[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pods = [group["template"].get("metadata", {}).get("labels", {}) for group in groups]
    pods += [
        d["spec"]["template"]["metadata"]["labels"] for d in documents if "template" in d["spec"]
    ]
    for service in (d for d in documents if d["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        assert any(wanted <= labels.items() for labels in pods), service["metadata"]["name"]


def test_the_images_have_what_is_copied_into_them() -> None:
    root = FOLDER.parent.parent
    for file in ("Dockerfile", "Dockerfile.vllm"):
        for line in (FOLDER / file).read_text().splitlines():
            if line.startswith("COPY "):
                assert all((root / name).exists() for name in line.split()[1:-1]), line
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    built = compose["services"]["groundstream"]["build"]
    assert (FOLDER / built["context"]).resolve() == root
    assert (root / built["dockerfile"]).is_file()


@pytest.mark.skipif(CRD is None, reason="RAYSERVICE_CRD names no file")
def test_the_manifest_follows_kuberays_schema(documents: list[dict[str, Any]]) -> None:
    """`RAYSERVICE_CRD`: KubeRay's ray.io_rayservices.yaml."""
    versions = yaml.safe_load(Path(str(CRD)).read_text())["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(documents[0], strict(schema), jsonschema.Draft7Validator)
    wrong = {**documents[0], "spec": {**documents[0]["spec"], "serveConfig": ""}}
    with pytest.raises(jsonschema.ValidationError, match="serveConfig"):
        jsonschema.validate(wrong, schema, jsonschema.Draft7Validator)


def strict(schema: Any) -> Any:
    """As the API server reads it: no unknown fields, and quantities may be numbers or text."""
    if isinstance(schema, list):
        for part in schema:
            strict(part)
    if isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
            schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
        if "properties" in schema and not open_ended:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            strict(part)
    return schema
