// Zones and lines on a camera's picture, drawn with mouse, finger, pen or keyboard. Points are shares of the picture.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { listPlaces, putPlace, removePlace } from "./service.mjs";

const DRAG = 0.02; // a pointer that has moved so far draws; one that has not sets a corner
const NEAR = 0.04; // this near to its first corner a zone is closed
const STEP = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FINE = 0.01, COARSE = 0.05; // with and without the shift key
const KINDS = { zones: "zone", lines: "line" };

const within = ([x, y]) => [Math.min(Math.max(x, 0), 1), Math.min(Math.max(y, 0), 1)];
const distance = ([ax, ay], [bx, by]) => Math.hypot(ax - bx, ay - by);
const least = (kind) => (kind === "zones" ? 3 : 2);
const isReady = (draft) => (draft.kind === "zones" ? draft.points.length >= 3 : draft.points.length === 2);
const middle = (points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);

/** Corners of the rectangle between two points. */
const rectangle = ([ax, ay], [bx, by]) => [[ax, ay], [bx, ay], [bx, by], [ax, by]];

/** The points with one more, where it changes the border least. */
function inserted(points, point) {
  const extra = (i) => distance(points[i], point) + distance(point, points[(i + 1) % points.length]) - distance(points[i], points[(i + 1) % points.length]);
  const best = points.reduce((least, _, i) => (extra(i) < extra(least) ? i : least), 0);
  return points.toSpliced(best + 1, 0, point);
}

/** A zone or line in shares, also where its file says pixels of the picture. */
function inShares(place, result) {
  const [width, height] = place.unit === "PIXELS" ? [result?.width ?? 1, result?.height ?? 1] : [1, 1];
  return { ...place, points: place.points.map(([x, y]) => [x / width, y / height]) };
}

/**
 * The places of a stream's camera, and the one that is being drawn: `draft` is {kind, name, points, dwell_s, queries, old,
 * isClosed, cross}; `old` is the name under which it is saved, `cross` where the keyboard draws.
 */
export function usePlaces(stream, result) {
  const [found, setFound] = useState({ zones: [], lines: [], yaml: "" });
  const [draft, setDraft] = useState(null);
  const [failure, setFailure] = useState("");
  const number = stream?.number;
  useEffect(() => {
    let isOver = false;
    if (number != null) listPlaces(number).then((places) => { if (!isOver) setFound(places); }, (error) => setFailure(error.message));
    return () => { isOver = true; };
  }, [number, stream?.places_version]);
  const size = [result?.width ?? 768, result?.height ?? 432];
  const saved = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, found[kind].map((place) => inShares(place, result))]));
  function begin(kind, place) {
    setFailure("");
    const used = found[kind].map((one) => one.name);
    let count = 1;
    while (used.includes(`${KINDS[kind]}-${count}`)) count += 1;
    const fresh = { name: `${KINDS[kind]}-${count}`, points: [], dwell_s: null, queries: [], old: null };
    setDraft({ kind, ...(place ? { ...place, old: place.name } : fresh), isClosed: Boolean(place), cross: [0.5, 0.5] });
  }
  async function change(work) {
    setFailure("");
    try { setFound(await work()); setDraft(null); } catch (error) { setFailure(error.message); }
  }
  const save = () => change(async () => {
    const { kind, name, points, dwell_s: dwell, queries, old } = draft;
    if (name !== old && found[kind].some((place) => place.name === name)) throw new Error(`There is a ${KINDS[kind]} ${name} already.`);
    const places = await putPlace(number, kind, { name, points, queries, ...(kind === "zones" ? { dwell_s: dwell } : {}) });
    return old && old !== name ? removePlace(number, kind, old) : places;
  });
  const remove = () => change(() => removePlace(number, draft.kind, draft.old));
  return { overlay: { saved, draft, setDraft, size }, saved, draft, setDraft, begin, save, remove, failure, yaml: found.yaml };
}

/** A draft with one more point: an end of a line, a corner, or the first corner again, which closes a zone. */
function added(draft, point) {
  const { kind, points, isClosed } = draft;
  if (kind === "lines") return points.length < 2 ? { ...draft, points: [...points, point] } : draft;
  if (isClosed) return { ...draft, points: inserted(points, point) };
  if (points.length >= 3 && distance(points[0], point) < NEAR) return { ...draft, isClosed: true };
  return { ...draft, points: [...points, point] };
}

/** The zones and lines over the picture. */
export function Overlay({ saved, draft, setDraft, size: [width, height] }) {
  const svg = useRef();
  const hand = useRef(null); // what the pointer that is down is doing
  const [shown, setShown] = useState(width);
  useEffect(() => {
    const watcher = new ResizeObserver(([entry]) => setShown(entry.contentRect.width || width));
    watcher.observe(svg.current);
    return () => watcher.disconnect();
  }, []);
  useEffect(() => { if (draft && !draft.points.length) svg.current.focus(); }, [Boolean(draft)]);
  const px = width / shown; // of the picture, for one of the screen
  const at = (event) => {
    const box = svg.current.getBoundingClientRect();
    return within([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
  };
  // Several events may come between two renderings, so each goes by the draft that the last one left.
  const change = (next) => setDraft((now) => now && { ...now, ...next(now) });
  const add = (point) => change((now) => added(now, point));
  function down(event) {
    if (!draft || !event.isPrimary || event.button > 0) return;
    event.preventDefault();
    svg.current.setPointerCapture(event.pointerId);
    const index = event.target.dataset?.corner;
    hand.current = { from: at(event), corner: index == null ? null : Number(index), before: draft, isDrag: false };
    if (index == null) svg.current.focus(); else event.target.focus();
  }
  function drag(event) {
    const doing = hand.current;
    if (!doing || !event.isPrimary) return;
    const to = at(event);
    doing.isDrag ||= distance(doing.from, to) > DRAG;
    if (!doing.isDrag) return;
    if (doing.corner != null) change(({ points }) => ({ points: points.with(doing.corner, to) }));
    else if (!doing.before.points.length) {
      const points = draft.kind === "zones" ? rectangle(doing.from, to) : [doing.from, to];
      change(() => ({ points, isClosed: true }));
    }
  }
  function up(event) {
    const doing = hand.current;
    if (!doing || !event.isPrimary) return;
    hand.current = null;
    if (doing.isDrag) return;
    if (doing.corner == null) add(at(event));
    else if (doing.corner === 0) change(({ points }) => ({ isClosed: points.length >= 3 }));
  }
  function cancel() {
    if (hand.current) setDraft(hand.current.before);
    hand.current = null;
  }
  function key(event) {
    if (!draft) return;
    const corner = event.target.dataset?.corner;
    const step = STEP[event.key];
    const by = event.shiftKey ? FINE : COARSE;
    if (step) {
      const moved = ([x, y]) => within([x + by * step[0], y + by * step[1]]);
      change(({ cross, points }) => (corner == null ? { cross: moved(cross) } : { points: points.with(corner, moved(points[corner])) }));
    } else if ((event.key === "Enter" || event.key === " ") && corner == null) change((now) => added(now, now.cross));
    else if (event.key === "Delete" && corner != null) {
      change(({ kind, points }) => (points.length > least(kind) ? { points: points.toSpliced(corner, 1) } : {}));
    } else if (event.key === "Backspace" && corner == null) change(({ points }) => ({ points: points.slice(0, -1), isClosed: false }));
    else if (event.key === "Escape") setDraft(null);
    else return;
    event.preventDefault();
  }
  const scaled = (points) => points.map(([x, y]) => [x * width, y * height]);
  const text = (points) => scaled(points).map((point) => point.join(",")).join(" ");
  const others = (kind) => saved[kind].filter((place) => !(draft && draft.kind === kind && draft.old === place.name));
  const label = ({ name, points }) => {
    // A line has its arrow in the middle.
    const [x, y] = points.length > 2 ? middle(scaled(points)) : scaled(points)[0];
    return html`<text x=${x} y=${y} font-size=${14 * px} text-anchor="middle">${name}</text>`;
  };
  const cross = draft && scaled([draft.cross])[0];
  return html`<svg ref=${svg} class="places ${draft ? "drawing" : ""}" viewBox="0 0 ${width} ${height}" preserveAspectRatio="none"
    tabindex=${draft ? 0 : null} role=${draft ? "application" : "img"} aria-label=${draft ? `Drawing a ${KINDS[draft.kind]}: ${draft.points.length} corners`
      : `Zones and lines: ${[...saved.zones, ...saved.lines].map((place) => place.name).join(", ") || "none"}`}
    onPointerDown=${down} onPointerMove=${drag} onPointerUp=${up} onPointerCancel=${cancel} onKeyDown=${key}>
    ${others("zones").map((zone) => html`<g key=${`z${zone.name}`}><polygon class="zone" points=${text(zone.points)} />${label(zone)}</g>`)}
    ${others("lines").map((line) => html`<g key=${`l${line.name}`}><${Arrow} ends=${scaled(line.points)} px=${px} />${label(line)}</g>`)}
    ${draft && html`<g class="draft">
      ${draft.kind === "lines" && draft.points.length === 2 ? html`<${Arrow} ends=${scaled(draft.points)} px=${px} />`
      : draft.isClosed ? html`<polygon class="zone" points=${text(draft.points)} />` : html`<polyline class="zone" points=${text(draft.points)} />`}
      <path class="cross" d="M ${cross[0] - 12 * px} ${cross[1]} h ${24 * px} M ${cross[0]} ${cross[1] - 12 * px} v ${24 * px}" />
      ${scaled(draft.points).map(([x, y], i) => html`<circle key=${i} class="corner" data-corner=${i} cx=${x} cy=${y} r=${9 * px} tabindex="0" role="button"
        aria-label="Corner ${i + 1} of ${draft.points.length}, ${Math.round(100 * draft.points[i][0])} % from the left, ${Math.round(100 * draft.points[i][1])} % from the top" />`)}
    </g>`}</svg>`;
}

/** A line, with an arrow to its right-hand side: what goes that way crosses to the right. */
function Arrow({ ends: [[ax, ay], [bx, by]], px }) {
  const length = Math.hypot(bx - ax, by - ay) || 1;
  const [dx, dy] = [(bx - ax) / length, (by - ay) / length];
  const [x, y] = [(ax + bx) / 2, (ay + by) / 2];
  const point = (along, aside) => `${x + px * (along * dx - aside * dy)} ${y + px * (along * dy + aside * dx)}`;
  return html`<path class="line" d="M ${ax} ${ay} L ${bx} ${by}" />
    <path class="line" d="M ${point(0, 0)} L ${point(0, 22)} M ${point(-6, 14)} L ${point(0, 22)} L ${point(6, 14)}" />`;
}

/** The list of zones and lines, and the form for the one that is being drawn. */
export function Places({ places }) {
  const { saved, draft, setDraft, begin, save, remove, failure, yaml } = places;
  const all = Object.keys(KINDS).flatMap((kind) => saved[kind].map((place) => ({ kind, place })));
  const submit = (event) => { event.preventDefault(); save(); };
  const dwell = (text) => setDraft({ ...draft, dwell_s: text === "" ? null : Number(text) });
  return html`<section aria-labelledby="places"><h2 id="places">Zones and lines</h2>
    ${failure && html`<p class="bad" role="alert">${failure}</p>`}
    ${draft ? html`<form class="draft" onSubmit=${submit}>
      <p class="muted">${draft.kind === "zones" ? "Tap or click the corners, the first one again to close it; or drag a rectangle."
      : "Tap or click both ends, or drag from one to the other. The arrow points to its right."}</p>
      <p class="muted">Corners can be dragged. Keys: arrows move the cross, with shift by less; Enter sets a corner, Backspace takes it back,
        Tab goes from corner to corner, Delete removes one.</p>
      <div class="bar"><label>Name<input name="name" required pattern="[A-Za-z0-9][A-Za-z0-9_\\-]*" maxlength="64" autocomplete="off"
          title="letters, digits, - and _" value=${draft.name} onInput=${(event) => setDraft({ ...draft, name: event.target.value })} /></label>
        ${draft.kind === "zones" && html`<label>Tell of stays of, s<input name="dwell" type="number" min="0" max="86400" step="any"
          placeholder="no" value=${draft.dwell_s ?? ""} onInput=${(event) => dwell(event.target.value)} /></label>`}</div>
      <div class="bar"><button type="submit" disabled=${!isReady(draft)}>Save</button>
        <button type="button" class="secondary" onClick=${() => setDraft(null)}>Cancel</button>
        ${draft.old && html`<button type="button" class="secondary outline" onClick=${remove}>Remove</button>`}</div></form>`
    : html`${all.length ? html`<ul class="names">${all.map(({ kind, place }) => html`<li key=${kind + place.name}>
        <button class="outline" onClick=${() => begin(kind, place)}>${KINDS[kind]} ${place.name}${place.dwell_s == null ? "" : `, stays of ${place.dwell_s} s`}</button></li>`)}</ul>`
      : html`<p class="muted">None yet.</p>`}
      <div class="bar"><button onClick=${() => begin("zones")}>New zone</button><button onClick=${() => begin("lines")}>New line</button></div>
      ${all.length > 0 && html`<details><summary>For a file of cameras</summary><pre tabindex="0"><code>${yaml}</code></pre></details>`}`}
  </section>`;
}
