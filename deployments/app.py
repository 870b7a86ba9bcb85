"""The service as one Serve application: the only place that makes deployments.

One application, because the front end cannot do without its stages. Serve restarts every
deployment of an application when its `args` change, but not when replicas, queues or autoscaling
do: those numbers stand under `deployments` in `serve_config.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from agent.checked_settings import from_mapping
from agent.model_directory import has_auxiliary_encoder
from agent.settings import DeploymentSettings, ServiceSettings, with_environment
from deployments.front_end.ingress import Ingress
from deployments.stages.language import Language
from deployments.stages.requests import revision_of
from deployments.stages.vision import AuxiliaryEncoder, PrimaryEncoder, Proposal
from groundstream.errors import SettingsError

APPLICATION_NAME = "groundstream"
_BY_FRAME = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
"""Questions about one frame go to one language replica, to the next one where that is full."""


def build(args: dict[str, object]) -> Application:
    """The application for `serve deploy`, which applies the deployments' numbers itself."""
    settings = from_mapping(ServiceSettings, args, "args")
    return bind(with_environment(settings, os.environ), ())


def bind(settings: ServiceSettings, deployments: Sequence[DeploymentSettings]) -> Application:
    """The application with its deployments' numbers applied.

    Raises:
        SettingsError: numbers for a deployment that does not exist, or an address that other
            machines reach without TLS.
    """
    settings.server.check_address()
    options = {entry.name: entry.options() for entry in deployments}

    def deployment(cls: type[Any]) -> Any:
        plain: Any = serve.deployment(cls)
        return plain.options(**options.pop(cls.__name__, {}))

    def stage(cls: type[Any], name: str, **options: object) -> Any:
        return deployment(cls).bind(
            getattr(settings.stages, name),
            settings.model,
            settings.device,
            getattr(settings.num_threads, name),
            model_revision=revision_of(settings),
            hang_s=settings.stream.stage_hang_s,
            log_format=settings.observe.log_format,
            **options,
        )

    # One that the model does not have needs no numbers.
    auxiliary = has_auxiliary_encoder(settings.model)
    if not auxiliary:
        options.pop(AuxiliaryEncoder.__name__, None)
    batches = {"max_batch_frames": settings.max_batch_frames}
    weights = {"dtype": settings.dtype}
    encoder = {**batches, **weights, "compiled": settings.compiled}
    # Fakes and stages that know nothing of it are not told.
    published = {"as_published": True} if settings.as_published else {}

    proposal = stage(Proposal, "proposal", network=settings.proposal_network, **batches,
                     **published)  # fmt: skip
    language = (
        deployment(Language)
        .options(request_router_config=RequestRouterConfig(request_router_class=_BY_FRAME))
        .bind(
            settings.stages.language,
            settings,
            proposal=proposal,
            primary_encoder=stage(PrimaryEncoder, "primary_encoder", **encoder, **published),
            auxiliary_encoder=(
                stage(AuxiliaryEncoder, "auxiliary_encoder", **encoder) if auxiliary else None
            ),
            engine=settings.engine,
            **weights,
            **published,
        )
    )
    application: Application = deployment(Ingress).bind(
        settings, language=language, proposal=proposal
    )
    if options:
        raise SettingsError(f"deployments that do not exist: {', '.join(options)}")
    return application
