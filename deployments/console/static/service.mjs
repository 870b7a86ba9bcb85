// The console's API as the page uses it. Knows no page.

const POLL_MS = 2000;
const RETRY_MS = 2000;
const ALL_SAID = 1000; // how a stream that has ended is closed
const MAX_UNANSWERED = 2;
const CAMERA = { video: { facingMode: "environment", width: { ideal: 640 } }, audio: false };
const JPEG_QUALITY = 0.8;

function socketTo(path) {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
  socket.binaryType = "blob";
  return socket;
}

/** A socket that is opened again when it breaks, but not when all has been said; `begin(socket)` sets it up. Returns a function that stops. */
function kept(path, begin, broken) {
  let socket, timer, stopped = false;
  function open() {
    socket = socketTo(path);
    socket.onclose = ({ code }) => { broken(); if (!stopped && code !== ALL_SAID) timer = setTimeout(open, RETRY_MS); };
    begin(socket);
  }
  open();
  return () => { stopped = true; clearTimeout(timer); socket.onclose = null; socket.close(); };
}

/** What a request says. Throws an Error with a message that says what to do. */
async function call(path, options) {
  let response;
  try { response = await fetch(path, options); } catch { throw new Error("the console does not answer; is it still running?"); }
  const isJson = response.headers.get("content-type")?.includes("json");
  const body = isJson ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(body.error);
  return body;
}

/** Calls `tell` with the service's figures every two seconds, or with {error}; returns a function that stops. */
export function poll(tell) {
  let timer, stopped = false;
  async function once() {
    let news;
    try { news = await call("/api/service"); } catch (error) { news = { error: error.message }; }
    if (stopped) return;
    tell(news);
    timer = setTimeout(once, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
  once();
  return () => { stopped = true; clearTimeout(timer); };
}

/**
 * All streams and their pictures: `tell(news, pictures)` with {number, picture} for each that is new; `tell(null)` when the
 * console is away. Pictures are asked for when the last ones have been drawn, so that a slow page gets fewer.
 */
export function watchWall(tell) {
  return kept("/api/wall", (socket) => {
    let asked, news, blobs = [];
    const next = () => { asked = performance.now(); socket.send("next"); };
    async function finish() {
      const seen = performance.now();
      const about = news, came = blobs, lineMs = seen - asked - about.waited_ms;
      const pictures = await Promise.all(about.pictures.map(async (result, i) => ({ number: result.number, picture: await pictureOf(came[i], result, seen, lineMs) })));
      for (const stream of about.streams) stream.seen = seen;
      tell(about, pictures.filter(({ picture }) => picture));
      if (document.hidden) await new Promise((next) => setTimeout(next, POLL_MS));
      if (socket.readyState === WebSocket.OPEN) next();
    }
    socket.onopen = next;
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") { news = JSON.parse(data); blobs = []; } else blobs.push(data);
      if (blobs.length === news.pictures.length) finish();
    };
  }, () => tell(null));
}

/**
 * Looks on at a stream; `tell(picture)` for every one there is time for; returns a function that stops. Each is asked for when the
 * last one has been drawn: what waits on a slow line is old when it comes.
 */
export function lookOn(number, tell) {
  let asked, result, stopped = false;
  const stop = kept(`/api/streams/${number}/pictures`, (socket) => {
    const next = () => { asked = performance.now(); socket.send("next"); };
    socket.onopen = next;
    socket.onmessage = async ({ data }) => {
      if (typeof data === "string") { result = JSON.parse(data); return; }
      const seen = performance.now();
      const picture = await pictureOf(data, result, seen, seen - asked - result.waited_ms);
      if (!stopped && picture) tell(picture);
      if (document.hidden) await new Promise((again) => setTimeout(again, POLL_MS));
      if (socket.readyState === WebSocket.OPEN) next();
    };
  }, () => {});
  return () => { stopped = true; stop(); };
}

/**
 * A picture as the pages keep it; null: the browser cannot read it. `lineMs` is how long it was on its way, its question too:
 * no picture is to look newer than it is.
 */
async function pictureOf(blob, result, seen, lineMs = 0) {
  try { return { bitmap: await createImageBitmap(blob), blob, result, seen, ageMs: (result.age_ms ?? 0) + Math.max(0, lineMs) }; } catch { return null; }
}

/** One question about one picture (a blob or file): the picture and what was said about it. */
export async function ask(blob, query, task) {
  const seen = performance.now();
  const result = await call(`/api/ask?${new URLSearchParams({ query, task })}`, {
    method: "POST", body: blob, headers: { "content-type": blob.type || "application/octet-stream" },
  });
  const picture = await pictureOf(blob, result, seen);
  if (!picture) throw new Error("this browser cannot show the picture");
  return picture;
}

export const listEvents = (params) => call(`/api/events?${new URLSearchParams(params)}`);

/** `tell(events)` as they come, `opened()` whenever it begins anew; returns a function that stops. */
export function hearEvents(opened, tell) {
  return kept("/api/events/new", (socket) => {
    socket.onopen = opened;
    socket.onmessage = ({ data }) => tell(JSON.parse(data).events);
  }, () => {});
}

export const listPlaces = (number) => call(`/api/streams/${number}/places`);

/** `kind` is "zones" or "lines". */
export function putPlace(number, kind, place) {
  return call(`/api/streams/${number}/${kind}/${encodeURIComponent(place.name)}`, {
    method: "PUT", body: JSON.stringify(place), headers: { "content-type": "application/json" },
  });
}

export function removePlace(number, kind, name) {
  return call(`/api/streams/${number}/${kind}/${encodeURIComponent(name)}`, { method: "DELETE" });
}

/** The camera of this device as a stream of its own. */
export class CameraStream {
  /** `tell(picture)` for every answered one; `fail(message)` for what goes wrong, null when it has stopped. */
  constructor(tell, fail) {
    this.tell = tell;
    this.fail = fail;
    this.waiting = [];
  }

  async start(query) {
    if (!navigator.mediaDevices) throw new Error("browsers give the camera to https pages and to this machine only");
    this.media = await navigator.mediaDevices.getUserMedia(CAMERA);
    this.video = document.createElement("video");
    Object.assign(this.video, { srcObject: this.media, muted: true, playsInline: true });
    await this.video.play();
    this.socket = socketTo(`/api/watch?${new URLSearchParams({ query })}`);
    this.socket.onopen = () => this.#send();
    this.socket.onmessage = ({ data }) => this.#hear(JSON.parse(data));
    this.socket.onclose = () => this.stop();
  }

  change(query) { this.socket.send(query); }

  stop() {
    if (!this.media) return;
    for (const track of this.media.getTracks()) track.stop();
    this.media = null;
    this.socket.close();
    this.fail(null);
  }

  /** Sends the camera's picture of now, unless two are on their way; comes back by itself. */
  async #send() {
    while (this.media && this.socket.readyState === WebSocket.OPEN) {
      await new Promise((next) => setTimeout(next, 66));
      if (!this.media || this.waiting.length >= MAX_UNANSWERED) continue;
      const canvas = new OffscreenCanvas(this.video.videoWidth, this.video.videoHeight);
      canvas.getContext("2d").drawImage(this.video, 0, 0);
      const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
      if (!this.media) return;
      this.sequence = (this.sequence ?? 0) + 1;
      this.waiting.push({ sequence: this.sequence, blob, bitmap: canvas.transferToImageBitmap(), seen: performance.now() });
      this.socket.send(blob);
    }
  }

  #hear(event) {
    if (event.kind === "error") this.fail(event.message);
    const longAgo = performance.now() - 2000; // superseded or refused: nothing will be said about it
    if (event.kind === "result") {
      const about = this.waiting.find((frame) => frame.sequence === event.sequence);
      this.waiting = this.waiting.filter((frame) => frame.sequence > event.sequence);
      if (about) this.tell({ ...about, result: event, ageMs: 0 });
    } else {
      this.waiting = this.waiting.filter((frame) => frame.seen > longAgo);
    }
  }
}
