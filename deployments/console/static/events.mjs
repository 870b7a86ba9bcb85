// Events: as they come and for the last day, in words; and the page that lists them.

import { html, useEffect, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { hearEvents, listEvents } from "./service.mjs";

const MOST = 1000;
const PAGE = 100;
const KINDS = [["", "all kinds"], ["APPEARED", "appeared"], ["LEFT", "left"], ["LOST", "lost"], ["LINE_CROSSED", "line crossed"],
  ["ZONE_ENTERED", "zone entered"], ["ZONE_LEFT", "zone left"], ["DWELT", "dwelt in a zone"], ["COUNT_CHANGED", "count changed"],
  ["ANSWER_CHANGED", "answer changed"]];
const REASONS = { SESSION_ENDED: "the service forgot the stream", QUESTION_CHANGED: "another question was asked", UNSURE: "not sure for long" };

/** What happened, as a person would say it. */
export function eventWords({ kind, query, track_id: track, place, direction, dwell_s: dwelt, count, count_before: before, reason, answer }) {
  const thing = track == null ? query : `${query} #${track}`;
  switch (kind) {
    case "APPEARED": return `${thing} appeared`;
    case "LEFT": return `${thing} left`;
    case "LOST": return `${thing} was lost: ${REASONS[reason] ?? reason}`;
    case "LINE_CROSSED": return `${thing} crossed ${place} to the ${direction === "TO_RIGHT" ? "right" : "left"}`;
    case "ZONE_ENTERED": return `${thing} entered ${place}`;
    case "ZONE_LEFT": return `${thing} left ${place}`;
    case "DWELT": return `${thing} has been in ${place} for ${dwelt.toFixed(1)} s`;
    case "COUNT_CHANGED": return `${count} × ${query}${place ? ` in ${place}` : ""}, before ${before}`;
    case "ANSWER_CHANGED": return `${query}: ${answer.status === "NOT_PRESENT" ? "not here" : answer.text || (answer.count ?? "here")}`;
    default: return kind.toLowerCase().replaceAll("_", " ");
  }
}

/** Newest first, each once; those whose ids are in `taken` are marked as retracted. */
function merged(known, news, taken) {
  const byNumber = new Map([...known, ...news].map((record) => [record.number, record]));
  return [...byNumber.values()].map((record) => (taken.has(record.id) ? { ...record, retracted: true } : record))
    .sort((a, b) => b.number - a.number).slice(0, MOST);
}

/** {list, taken, leftOut, error}: the newest events and the ids of those that were retracted, kept up to date. */
export function useEvents() {
  const [events, setEvents] = useState({ list: [], taken: new Set(), leftOut: 0, error: "" });
  useEffect(() => hearEvents(async () => {
    // What comes while the list is on its way is in it, or in a message after it.
    try {
      const { events: list, left_out: leftOut } = await listEvents({ limit: PAGE });
      setEvents((now) => ({ ...now, list: merged(now.list, list, now.taken), leftOut, error: "" }));
    } catch (error) { setEvents((now) => ({ ...now, error: error.message })); }
  }, (news) => setEvents((now) => {
    // A retraction is no row of its own.
    const back = news.filter(({ event }) => event.kind === "RETRACTED").map(({ event }) => event.retracts);
    const taken = new Set([...now.taken, ...back].slice(-MOST));
    return { ...now, taken, list: merged(now.list, news.filter(({ event }) => event.kind !== "RETRACTED"), taken) };
  })), []);
  return events;
}

export function EventList({ events, empty, camera = true }) {
  if (!events.length) return html`<p class="muted">${empty}</p>`;
  return html`<ol class="events">${events.map((record) => {
    const when = new Date(record.time_ns / 1e6);
    const words = eventWords(record.event);
    return html`<li key=${record.number} class=${record.retracted ? "retracted" : ""}>
      <time datetime=${when.toISOString()}>${when.toLocaleTimeString("en-GB")}</time>
      ${camera && html`<a href="#/camera/${encodeURIComponent(record.camera)}">${record.camera}</a>`}
      <span>${record.retracted ? html`<del>${words}</del> <em>retracted</em>` : words}</span></li>`;
  })}</ol>`;
}

/** All events of the last day, by camera and kind. */
export function Events({ events, streams }) {
  const [camera, setCamera] = useState("");
  const [kind, setKind] = useState("");
  const [older, setOlder] = useState([]);
  const [hasMore, setHasMore] = useState(true);
  const [error, setError] = useState("");
  useEffect(() => { setOlder([]); setHasMore(true); }, [camera, kind]);
  const wanted = (record) => (!camera || record.camera === camera) && (!kind || record.event.kind === kind);
  const shown = merged(older, events.list, events.taken).filter(wanted);
  const names = [...new Set([...streams.map((stream) => stream.name), ...events.list.map((record) => record.camera)])].sort();
  async function more() {
    const last = shown.at(-1);
    const params = { limit: PAGE, camera, kind, ...(last ? { before: last.number } : {}) };
    try {
      const { events: list } = await listEvents(params);
      setOlder((now) => merged(now, list, events.taken));
      setHasMore(list.length === PAGE);
      setError("");
    } catch (problem) { setError(problem.message); }
  }
  return html`<section aria-labelledby="title"><h1 id="title" tabindex="-1">Events of the last day</h1>
    <div class="bar"><label>Camera<select value=${camera} onChange=${(event) => setCamera(event.target.value)}>
        <option value="">all cameras</option>${names.map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      <label>Kind<select value=${kind} onChange=${(event) => setKind(event.target.value)}>
        ${KINDS.map(([name, words]) => html`<option value=${name}>${words}</option>`)}</select></label></div>
    ${(error || events.error) && html`<p class="bad" role="alert">${error || events.error}</p>`}
    ${events.leftOut > 0 && html`<p class="muted">${events.leftOut} events of the last day made room for newer ones.</p>`}
    <div role="log" aria-label="Events"><${EventList} events=${shown} empty="Nothing of this kind has happened." /></div>
    ${hasMore ? html`<button class="outline" onClick=${more}>Older</button>` : html`<p class="muted">That is all.</p>`}</section>`;
}
