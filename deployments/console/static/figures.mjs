// Figures for those who run the service: frames by their fate, stages, cache, drafts.

import { html } from "./vendor/htm-preact-3.1.1.mjs";
import { ms, percent, Table, whole } from "./parts.mjs";

const FATES = ["received", "answered", "tracked_only", "superseded", "expired", "rejected", "failed", "in_flight"];

export function Figures({ news }) {
  const { service, drafts, streams = [], events } = news;
  if (!service) return html`<section><h1 id="title" tabindex="-1">Figures</h1><p>${news.error ?? "connecting …"}</p></section>`;
  const { cache, frames } = service;
  const perPass = drafts.num_passes ? (drafts.num_drafted_tokens / drafts.num_passes).toFixed(2) : "–";
  const kept = Object.values(events.by_camera).reduce((sum, count) => sum + count, 0);
  return html`<section aria-labelledby="title"><h1 id="title" tabindex="-1">Figures</h1>
    <p class="muted">The front end behind this connection, in the ${whole(service.uptime_s)} s since it started;
      streams open: ${service.open_streams}, frames received: ${whole(frames.received)}, failed: ${whole(frames.failed)}.</p>
    <h2>Stages, mean ms of a call</h2>
    <${Table} caption="Stages" names=${["stage", "calls", "refused", "wait", "compute", "total"]}
      rows=${service.stages.map((stage) => [stage.name.replace("_", " "), whole(stage.num_done), whole(stage.num_refused),
        ms(stage.queue_ms), ms(stage.compute_ms), ms(stage.call_ms)])} />
    <h2>Region cache</h2>
    <${Table} caption="Region cache" names=${["hits", "misses", "hit share", "stored", "errors"]} text=${0}
      rows=${[[whole(cache.hits), whole(cache.misses), percent(cache.hit_share), whole(cache.stored), whole(cache.errors)]]} />
    <h2>Drafts, of answers seen here</h2>
    <${Table} caption="Drafts" names=${["answers", "passes", "tokens drafted", "drafted a pass", "prefix tokens reused"]} text=${0}
      rows=${[[whole(drafts.num_answers), whole(drafts.num_passes), whole(drafts.num_drafted_tokens), perPass,
        whole(drafts.num_prefix_tokens_reused)]]} />
    <h2>Frames of the streams</h2>
    <${Table} caption="Frames of the streams" names=${["stream", ...FATES.map((name) => name.replace("_", " ")), "followed", "key frames", "last key frame, ms"]}
      rows=${streams.map((stream) => [stream.name, ...FATES.map((name) => whole(stream.books[name])),
        whole(stream.books.num_tracks), whole(stream.books.num_keyframes), ms(stream.keyframe_ms)])} />
    <p class="muted">Events of the last day here: ${whole(kept)}; made room for newer ones: ${whole(events.left_out)}; not in
      their file: ${whole(events.unwritten)}.</p></section>`;
}
