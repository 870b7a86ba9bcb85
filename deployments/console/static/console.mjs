// The page: what is shown and what the buttons do. Drawing is in picture.mjs, the network in service.mjs.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { clear, detectionsOf, draw, inWords, nameOf } from "./picture.mjs";
import { ask, CameraStream, lookOn, poll } from "./service.mjs";

const TASKS = [["DETECT", "where is it?"], ["REFER", "which one is it?"], ["COUNT", "how many?"],
  ["GROUNDED_CAPTION", "describe the picture"], ["CHAT", "anything"]];
const STATUSES = { NOT_PRESENT: "not here.", UNSURE: "not sure.", PENDING: "looking …", EXPIRED: "too long ago to say." };

const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
const ms = (value) => (value == null ? "–" : value < 10 ? value.toFixed(1) : whole(value));
const percent = (value) => (value == null ? "–" : `${Math.round(100 * value)} %`);

/** A sentence or two about a result; what a screen reader says when they change. */
function sentence(result) {
  if (!result) return "";
  const said = result.answers.map((answer) => {
    const counted = answer.count == null ? "" : `Counted ${answer.count}. `;
    if (STATUSES[answer.status]) return `${answer.query}: ${STATUSES[answer.status]}`;
    return counted + (answer.detections.length ? "" : answer.reply);
  });
  const found = detectionsOf(result).length ? `Found ${inWords(result)}.` : "";
  return [found, ...said].filter(Boolean).join(" ");
}

function Picture({ canvas, result }) {
  return html`<canvas ref=${canvas} width="640" height="360" role="img"
    aria-label=${result ? `Picture: ${inWords(result)}` : "No picture yet"} />`;
}

function Found({ result }) {
  const found = detectionsOf(result);
  if (!found.length) return null;
  return html`<details><summary>Boxes as a table: ${found.length}</summary>
    <${Table} names=${["what", "source", "age ms", "x1", "y1", "x2", "y2"]} text=${2}
      rows=${found.map((one) => [nameOf(one), one.source.toLowerCase(), whole(one.age_ms), ...one.box.map(whole)])} />
  </details>`;
}

function Table({ names, rows, text = 1, caption }) {
  const kind = (column) => (column < text ? "" : "number");
  return html`<div class="wide" tabindex="0" role="group" aria-label=${caption ?? "table"}><table>
    <thead><tr>${names.map((name, i) => html`<th scope="col" class=${kind(i)}>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell, i) => html`<td class=${kind(i)}>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

function Timings({ result }) {
  if (!result) return null;
  const parts = Object.entries(result.timings_ms).filter(([, value]) => value > 0);
  return html`<p class="muted">Frame ${result.sequence}, ${result.width} x ${result.height}${
    result.cache_hit ? ", from the cache" : ""}: ${parts.map(([name, value]) => `${name} ${ms(value)} ms`).join(", ")}</p>`;
}

function Streams({ news, chosen, choose }) {
  const { streams = [], others } = news;
  const lists = { chosen, choose };
  return html`<section aria-labelledby="streams"><h2 id="streams">Streams</h2>
    <h3>Through this console</h3>
    ${streams.length ? html`<${List} where="streams" streams=${streams} ...${lists} />`
    : html`<p class="muted">None. Start the camera, or run the console with a source.</p>`}
    <h3>At the service</h3>
    ${others ? html`<${List} where="others" streams=${others} ...${lists} />`
    : html`<p class="muted">The service lets nobody look on (<code>server.observe</code>).</p>`}</section>`;
}

function List({ where, streams, chosen, choose }) {
  const isChosen = (stream) => chosen?.where === where && chosen.number === stream.number;
  return html`<ul class="streams">${streams.map((stream) => html`<li key=${stream.number}>
      <button class=${isChosen(stream) ? "" : "outline"} aria-pressed=${isChosen(stream)}
        onClick=${() => choose(isChosen(stream) ? null : { where, number: stream.number })}>
        ${stream.number}. ${stream.name}: ${stream.queries.join(", ")}</button>
      ${stream.error && html`<p class="bad">${stream.error}</p>`}
      ${isChosen(stream) && html`<${Books} stream=${stream} />`}</li>`)}</ul>`;
}

function Books({ stream }) {
  const names = ["received", "answered", "tracked_only", "superseded", "expired", "rejected", "failed", "in_flight"];
  return html`<${Table} caption="Frames of this stream" names=${["frames", "number"]} rows=${[
    ...names.map((name) => [name.replace("_", " "), whole(stream.books[name])]),
    ["objects followed", whole(stream.books.num_tracks)], ["key frames", whole(stream.books.num_keyframes)],
    ...(stream.keyframe_ms == null ? [] : [["last key frame, ms", ms(stream.keyframe_ms)]])]} />`;
}

function Service({ news }) {
  const { service, drafts } = news;
  if (!service) return null;
  const { cache, frames } = service;
  const perPass = drafts.num_passes ? (drafts.num_drafted_tokens / drafts.num_passes).toFixed(2) : "–";
  return html`<section aria-labelledby="service"><h2 id="service">Service</h2>
    <p class="muted">The front end behind this connection, in the ${whole(service.uptime_s)} s since it started;
      <span> streams open: ${service.open_streams}, frames received: ${whole(frames.received)}, failed: ${whole(frames.failed)}.</span></p>
    <h3>Stages, mean ms of a call</h3>
    <${Table} caption="Stages" names=${["stage", "calls", "refused", "wait", "compute", "total"]}
      rows=${service.stages.map((stage) => [stage.name.replace("_", " "), whole(stage.num_done), whole(stage.num_refused),
        ms(stage.queue_ms), ms(stage.compute_ms), ms(stage.call_ms)])} />
    <h3>Region cache</h3>
    <${Table} caption="Region cache" names=${["hits", "misses", "hit share", "stored", "errors"]} text=${0}
      rows=${[[whole(cache.hits), whole(cache.misses), percent(cache.hit_share), whole(cache.stored), whole(cache.errors)]]} />
    <h3>Drafts, of answers seen here</h3>
    <${Table} caption="Drafts" names=${["answers", "passes", "tokens drafted", "drafted a pass", "prefix tokens reused"]} text=${0}
      rows=${[[whole(drafts.num_answers), whole(drafts.num_passes), whole(drafts.num_drafted_tokens), perPass,
        whole(drafts.num_prefix_tokens_reused)]]} />
  </section>`;
}

function Ask({ begin, show, fail, camera, toggleCamera, changeQuery }) {
  const [query, setQuery] = useState("");
  const [task, setTask] = useState("DETECT");
  const [busy, setBusy] = useState(false);
  const file = useRef();
  async function submit(event) {
    event.preventDefault();
    if (camera) { changeQuery(query); return; }
    const picture = file.current.files[0];
    if (!picture) { fail("Choose a picture first, or start the camera."); file.current.focus(); return; }
    begin();
    setBusy(true);
    try { show(await createImageBitmap(picture), await ask(picture, query, task)); } catch (error) { fail(error.message); }
    setBusy(false);
  }
  return html`<section aria-labelledby="ask"><h2 id="ask">Ask</h2><form onSubmit=${submit}>
    <label>Question<input name="query" required=${task !== "GROUNDED_CAPTION"} maxlength="500" placeholder="the red mug"
      autocomplete="off" value=${query} onInput=${(event) => setQuery(event.target.value)} /></label>
    <label>Kind of question<select name="task" value=${task} disabled=${camera} onChange=${(event) => setTask(event.target.value)}>
      ${TASKS.map(([name, words]) => html`<option value=${name}>${words}</option>`)}</select></label>
    <label>Picture file<input name="picture" type="file" accept="image/jpeg,image/png,image/webp,image/bmp" disabled=${camera} ref=${file} /></label>
    <div class="bar"><button type="submit" aria-busy=${busy} disabled=${busy}>${camera ? "Ask the camera" : "Ask"}</button>
      <button type="button" class="secondary" onClick=${() => toggleCamera(query)}>${camera ? "Stop camera" : "Start camera"}</button></div>
  </form></section>`;
}

function Page() {
  const [news, setNews] = useState({ streams: [] });
  const [result, setResult] = useState(null);
  const [failure, setFailure] = useState("");
  const [chosen, setChosen] = useState(null);
  const [camera, setCamera] = useState(null);
  const canvas = useRef();
  const show = (bitmap, about) => { draw(canvas.current, bitmap, about); bitmap.close?.(); setResult(about); };
  const fail = (message) => { clear(canvas.current); setResult(null); setFailure(message); }; // No old answer beside it.
  useEffect(() => poll(setNews), []);
  useEffect(() => {
    if (chosen != null) return lookOn(chosen, show, () => setChosen(null));
  }, [chosen]);
  async function toggleCamera(query) {
    if (camera) { camera.stop(); return; }
    if (!query.trim()) { setFailure("Say what to look for first."); return; }
    const stream = new CameraStream(show, (message) => (message === null ? setCamera(null) : setFailure(message)));
    try { await stream.start(query); setFailure(""); setChosen(null); setCamera(stream); } catch (error) { setFailure(`No camera: ${error.message}`); }
  }
  const { service, error } = news;
  return html`<a class="skip" href="#ask">Skip to the question</a>
    <header class="top"><h1>Groundstream</h1>
      <p role="status" class=${error ? "bad" : ""}>${error ?? (service ? `${service.model}, version ${service.version}` : "connecting …")}</p></header>
    <main>
      <section class="look" aria-labelledby="picture"><h2 id="picture">Picture</h2>
        <${Picture} canvas=${canvas} result=${result} />
        <p class="answer" role="status" aria-live="polite">${sentence(result)}</p>
        ${failure && html`<p class="bad" role="alert">${failure}</p>`}
        <${Timings} result=${result} /><${Found} result=${result} /></section>
      <${Ask} begin=${() => { setChosen(null); setFailure(""); }} show=${show} fail=${fail} camera=${camera}
        toggleCamera=${toggleCamera} changeQuery=${(query) => camera.change(query)} />
      <${Streams} news=${news} chosen=${chosen} choose=${setChosen} />
      <${Service} news=${news} /></main>`;
}

render(html`<${Page} />`, document.getElementById("console"));
