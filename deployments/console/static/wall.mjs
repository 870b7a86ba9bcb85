// The wall: every stream with its picture, its boxes and whether that is what the camera sees now.

import { html } from "./vendor/htm-preact-3.1.1.mjs";
import { EventList } from "./events.mjs";
import { age, condition, Picture, State, trailing, useNow } from "./parts.mjs";
import { inWords } from "./picture.mjs";

const ORIGINS = { BROWSER: "a browser's camera", OTHER: "another client" };

export function Wall({ wall, events }) {
  const now = useNow();
  const { streams, pictures, away, numLeftOut, othersAllowed } = wall;
  const latest = events.list.filter((record) => record.event.kind !== "COUNT_CHANGED").slice(0, 8);
  return html`<section aria-labelledby="title"><h1 id="title" tabindex="-1">Cameras</h1>
    ${streams.length === 0 && html`<p>${away ? "The console does not answer." : "There are no streams yet."} Start
      <code>groundstream console --cameras FILE</code>, stream to the service, or <a href="#/ask">show it your own camera</a>.</p>`}
    <ul class="wall">${streams.map((stream) => html`<${Tile} key=${stream.number} stream=${stream}
      picture=${pictures.get(stream.number)} now=${now} away=${away} />`)}</ul>
    ${numLeftOut > 0 && html`<p class="muted">${numLeftOut} more streams are open at the service than this console shows.</p>`}
    ${!othersAllowed && html`<p class="muted">The service shows nobody the streams of other clients (<code>server.observe</code>).</p>`}
    <h2>Latest events</h2><${EventList} events=${latest} empty="Nothing has happened yet." />
    <p><a href="#/events">All events of the last day, counts among them</a></p></section>`;
}

function Tile({ stream, picture, now, away }) {
  const is = condition(stream, picture, now, away);
  const trails = trailing(picture?.result);
  return html`<li><a class="tile" href="#/camera/${encodeURIComponent(stream.name)}">
    <${Picture} picture=${picture} is=${is} label=${stream.name} />
    <span class="caption"><strong>${stream.name}</strong> <${State} is=${is} />
      <small>${ORIGINS[stream.origin] ? `${ORIGINS[stream.origin]}, ` : ""}looks for ${stream.queries.join(", ") || "nothing"}</small>
      <small>${picture ? (is.isStale ? `last seen ${age(is.ageMs)} ago: ` : "sees ") + inWords(picture.result) : ""}${trails && ` (${trails})`}</small>
      ${stream.error && html`<small class="bad">${stream.error}</small>`}</span></a></li>`;
}
