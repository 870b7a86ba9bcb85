// One camera: its picture of now, its zones and lines, its events, and a question about what it sees.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { Asking } from "./asking.mjs";
import { Overlay, Places, usePlaces } from "./drawing.mjs";
import { EventList } from "./events.mjs";
import { age, condition, Found, Picture, sentence, State, trailing, useNow } from "./parts.mjs";
import { lookOn } from "./service.mjs";

const LAG_MS = 1000; // so much newer, the wall's picture is shown

/** When a picture was taken, on the page's clock. */
const takenAt = ({ seen, ageMs }) => seen - ageMs;

export function CameraPage({ name, wall, events }) {
  const now = useNow();
  // A stream that has ended and was opened again has another number; the newest one counts.
  const stream = wall.streams.filter((one) => one.name === name).at(-1);
  const [live, setLive] = useState(null);
  const number = stream?.number;
  const isOver = stream?.state === "ENDED";
  useEffect(() => {
    setLive(null);
    if (number != null) return lookOn(number, setLive);
  }, [number, isOver]); // One that has ended is looked at once more, for its last picture.
  const onWall = wall.pictures.get(number);
  // The wall's picture is a small one: it is there first, and where this one's socket stalls.
  const picture = !live || (onWall && takenAt(onWall) > takenAt(live) + LAG_MS) ? onWall : live;
  const latest = useRef();
  latest.current = live && picture;
  const places = usePlaces(stream, picture?.result);
  if (!stream) {
    return html`<section><h1 id="title" tabindex="-1">${name}</h1><p>${wall.away ? "The console does not answer."
      : "There is no camera of this name now."} <a href="#/">All cameras</a></p></section>`;
  }
  const is = condition(stream, picture, now, wall.away);
  const trails = trailing(picture?.result);
  const own = events.list.filter((record) => record.camera === name);
  function find() {
    if (latest.current) return latest.current.blob;
    throw new Error("There is no picture of this camera yet; ask again when there is one.");
  }
  return html`<section aria-labelledby="title"><h1 id="title" tabindex="-1">${name} <${State} is=${is} /></h1>
    <p class="muted">${stream.title}; looks for ${stream.queries.join(", ") || "nothing"}</p>
    ${stream.error && html`<p class="bad" role="alert">${stream.error}</p>`}
    <div class="two"><div>
      <${Picture} picture=${picture} is=${is} label=${name}><${Overlay} ...${places.overlay} /><//>
      <p class="muted">${picture ? `${sentence(picture.result)} Picture of ${age(is.ageMs)} ago${trails && `, ${trails}`}.` : ""}</p>
      <${Found} result=${picture?.result} />
      <${Places} places=${places} /></div>
    <div><h2 id="ask">Ask this camera</h2><${Asking} id="ask" find=${find} />
      <h2>Events of this camera</h2>
      <${EventList} events=${own.slice(0, 20)} camera=${false} empty="Nothing has happened in front of it yet." /></div></div>
  </section>`;
}
