// What several pages show: tables, numbers, ages, a picture with its boxes, what was said about it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { detectionsOf, draw, inWords, nameOf } from "./picture.mjs";

/** A picture that is older than this is not what the camera sees now; `STALLED_S` of the console. */
const STALE_MS = 5000;
/** Boxes that were followed for longer may stand beside what they are about. */
const TRAIL_MS = 2000;
const STATUSES = { NOT_PRESENT: "not here.", UNSURE: "not sure.", PENDING: "looking …", EXPIRED: "too long ago to say." };
const STATES = { WAITING: "no picture yet", LIVE: "live", STALLED: "no new picture", LOST: "lost, trying again", ENDED: "ended", AWAY: "console away" };

export const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
export const ms = (value) => (value == null ? "–" : value < 10 ? value.toFixed(1) : whole(value));
export const percent = (value) => (value == null ? "–" : `${Math.round(100 * value)} %`);

/** `0.4 s`, `12 s`, `3 min`, `2 h`. */
export function age(value) {
  if (value < 10_000) return `${(value / 1000).toFixed(1)} s`;
  if (value < 120_000) return `${Math.round(value / 1000)} s`;
  return value < 7_200_000 ? `${Math.round(value / 60_000)} min` : `${Math.round(value / 3_600_000)} h`;
}

/** The time of the page's clock, in milliseconds; twice a second another, so that ages grow without news. */
export function useNow() {
  const [now, setNow] = useState(performance.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(performance.now()), 500);
    return () => clearInterval(timer);
  }, []);
  return now;
}

/** What a person should know of boxes that may trail behind, because the model has not seen them for a while; else nothing. */
export function trailing(result) {
  const followedMs = Math.max(0, ...detectionsOf(result).map((detection) => detection.age_ms));
  return followedMs > TRAIL_MS ? `boxes followed for ${age(followedMs)}` : "";
}

/** {state, words, isStale, ageMs} of a stream and the picture that is shown of it; `away`: the console does not answer. */
export function condition(stream, picture, now, away) {
  const ageMs = picture ? picture.ageMs + Math.max(0, now - picture.seen) : null;
  let state = away ? "AWAY" : stream.state;
  if (state === "LIVE" && ageMs > STALE_MS) state = "STALLED";
  return { state, words: STATES[state], isStale: state !== "LIVE", ageMs };
}

/** What a stream is like, in a mark and in words. */
export function State({ is }) {
  return html`<span class="state ${is.state.toLowerCase()}">${is.words}</span>`;
}

/** A picture and its boxes; a stale one is grey and says how old it is. */
export function Picture({ picture, is, label, children }) {
  const canvas = useRef();
  useEffect(() => { if (picture) draw(canvas.current, picture.bitmap, picture.result); }, [picture]);
  const seen = picture ? inWords(picture.result) : "no picture yet";
  const old = is?.isStale && picture ? `${is.words}: this picture is ${age(is.ageMs)} old` : "";
  return html`<div class="picture ${old ? "stale" : ""}">
    <canvas ref=${canvas} width="768" height="432" role="img" aria-label="${label}: ${old || seen}"></canvas>
    ${old && html`<p class="old">${old}</p>`}${children}</div>`;
}

/** A sentence or two about a result. */
export function sentence(result) {
  if (!result) return "";
  const said = result.answers.map((answer) => {
    const counted = answer.count == null ? "" : `Counted ${answer.count}. `;
    if (STATUSES[answer.status]) return `${answer.query}: ${STATUSES[answer.status]}`;
    return counted + (answer.detections.length ? "" : answer.reply);
  });
  const found = detectionsOf(result).length ? `Found ${inWords(result)}.` : "";
  return [found, ...said].filter(Boolean).join(" ");
}

/** What was found, and how long it took. */
export function Found({ result }) {
  if (!result) return null;
  const found = detectionsOf(result);
  const parts = Object.entries(result.timings_ms).filter(([, value]) => value > 0);
  return html`<details><summary>Boxes and times: ${found.length}</summary>
    <p class="muted">Frame ${result.sequence}, ${result.width} x ${result.height}${
      result.cache_hit ? ", from the cache" : ""}: ${parts.map(([name, value]) => `${name} ${ms(value)} ms`).join(", ")}</p>
    <${Table} names=${["what", "source", "age ms", "x1", "y1", "x2", "y2"]} text=${2} caption="Boxes"
      rows=${found.map((one) => [nameOf(one), one.source.toLowerCase(), whole(one.age_ms), ...one.box.map(whole)])} />
  </details>`;
}

export function Table({ names, rows, text = 1, caption }) {
  const kind = (column) => (column < text ? "" : "number");
  return html`<div class="wide" tabindex="0" role="group" aria-label=${caption}><table>
    <thead><tr>${names.map((name, i) => html`<th scope="col" class=${kind(i)}>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell, i) => html`<td class=${kind(i)}>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}
