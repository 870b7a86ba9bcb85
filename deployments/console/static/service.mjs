// The console's API as the page uses it. Knows no page.

const POLL_MS = 1000;
const MAX_UNANSWERED = 2;
const CAMERA = { video: { facingMode: "environment", width: { ideal: 640 } }, audio: false };
const JPEG_QUALITY = 0.8;

function socketTo(path) {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
  socket.binaryType = "blob";
  return socket;
}

/** Calls `tell` with what there is every second, or with {error}; returns a function that stops. */
export function poll(tell) {
  let timer, stopped = false;
  async function once() {
    let news;
    try {
      const response = await fetch("/api/service");
      news = response.headers.get("content-type")?.includes("json")
        ? await response.json() : { error: await response.text() };
    } catch {
      news = { error: "the console does not answer; is it still running?" };
    }
    if (stopped) return;
    tell(news);
    timer = setTimeout(once, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
  once();
  return () => { stopped = true; clearTimeout(timer); };
}

/** One question about one picture. Throws an Error with a message that says what to do. */
export async function ask(picture, query, task) {
  const response = await fetch(`/api/ask?${new URLSearchParams({ query, task })}`, {
    method: "POST", body: picture, headers: { "content-type": picture.type || "application/octet-stream" },
  });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error);
  return body;
}

/** Looks on at a stream (`where`: "streams" of this console, or "others"); `tell(bitmap, result)` for every picture; returns a function that stops. */
export function lookOn({ where, number }, tell, over) {
  const socket = socketTo(`/api/${where}/${number}/pictures`);
  let result, busy = false, stopped = false;
  socket.onmessage = async ({ data }) => {
    if (typeof data === "string") { result = JSON.parse(data); return; }
    if (busy) return;
    busy = true;
    const about = result;
    try {
      const bitmap = await createImageBitmap(data);
      if (!stopped) tell(bitmap, about);
    } finally { busy = false; }
  };
  socket.onclose = over;
  return () => { stopped = true; socket.onclose = null; socket.close(); };
}

/** The camera of this device as a stream of its own. */
export class CameraStream {
  /** `tell(bitmap, result)` for every answered picture; `fail(message)` for what goes wrong. */
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
      const picture = await canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
      if (!this.media) return;
      this.sequence = (this.sequence ?? 0) + 1;
      this.waiting.push({ sequence: this.sequence, bitmap: canvas.transferToImageBitmap(), since: Date.now() });
      this.socket.send(picture);
    }
  }

  #hear(event) {
    if (event.kind === "error") this.fail(event.message);
    const longAgo = Date.now() - 2000; // superseded or refused: nothing will be said about it
    if (event.kind === "result") {
      const about = this.waiting.find((frame) => frame.sequence === event.sequence);
      this.waiting = this.waiting.filter((frame) => frame.sequence > event.sequence);
      if (about) this.tell(about.bitmap, event);
    } else {
      this.waiting = this.waiting.filter((frame) => frame.since > longAgo);
    }
  }
}
