// The frame around the pages: what they share, the address, the menu. Each page is a module of its own.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { AskPage } from "./asking.mjs";
import { CameraPage } from "./camera.mjs";
import { Events, useEvents } from "./events.mjs";
import { Figures } from "./figures.mjs";
import { CameraStream, poll, watchWall } from "./service.mjs";
import { Wall } from "./wall.mjs";

const MENU = [["", "Cameras"], ["events", "Events"], ["ask", "Ask"], ["figures", "Figures"]];

/** [page, name] of the address: `#/camera/gate` is ["camera", "gate"]. */
function address() {
  const [page = "", name = ""] = location.hash.replace(/^#\/?/, "").split("/");
  try { return [page, decodeURIComponent(name)]; } catch { return [page, name]; }
}

function useAddress() {
  const [here, setHere] = useState(address());
  useEffect(() => {
    const change = () => setHere(address());
    addEventListener("hashchange", change);
    change(); // It may have changed before anybody listened.
    return () => removeEventListener("hashchange", change);
  }, []);
  return here;
}

/** {streams, pictures by number, away}: all streams with their last pictures, each kept until a newer one has come. */
function useWall() {
  const [wall, setWall] = useState({ streams: [], pictures: new Map(), away: false, numLeftOut: 0, othersAllowed: true });
  useEffect(() => watchWall((news, came) => setWall((before) => {
    if (!news) return { ...before, away: true };
    const pictures = new Map(before.pictures);
    for (const { number, picture } of came) pictures.set(number, picture);
    for (const number of pictures.keys()) if (!news.streams.some((stream) => stream.number === number)) pictures.delete(number);
    return { streams: news.streams, pictures, away: false, numLeftOut: news.num_left_out, othersAllowed: news.others_allowed };
  })), []);
  return wall;
}

/** The camera of this device; it goes on while one looks at other pages. */
function useDevice() {
  const [stream, setStream] = useState(null);
  const [picture, setPicture] = useState(null);
  const [failure, setFailure] = useState("");
  async function toggle(query, fail) {
    if (stream) { stream.stop(); return; }
    if (!query.trim()) { fail("Say what to look for first."); return; }
    const started = new CameraStream(setPicture, (message) => (message === null ? setStream(null) : setFailure(message)));
    try { await started.start(query); setFailure(""); setStream(started); } catch (error) { fail(`No camera: ${error.message}`); }
  }
  return { stream, picture, failure, toggle };
}

function Console() {
  const [page, name] = useAddress();
  const [news, setNews] = useState({});
  const wall = useWall();
  const events = useEvents();
  const device = useDevice();
  const isFirst = useRef(true);
  useEffect(() => poll(setNews), []);
  useEffect(() => {
    document.title = `${name || MENU.find(([path]) => path === page)?.[1] || "Cameras"} · Groundstream`;
    // Who reads by ear or goes by keyboard begins with the new page; the first one begins at its top.
    if (!isFirst.current) {
      document.getElementById("title")?.focus({ preventScroll: true });
      scrollTo(0, 0);
    }
    isFirst.current = false;
  }, [page, name]);
  const { service, error } = news;
  const pages = {
    events: () => html`<${Events} events=${events} streams=${wall.streams} />`,
    ask: () => html`<${AskPage} device=${device} />`,
    figures: () => html`<${Figures} news=${news} />`,
    camera: () => html`<${CameraPage} key=${name} name=${name} wall=${wall} events=${events} />`,
  };
  const shown = pages[page] ?? (() => html`<${Wall} wall=${wall} events=${events} />`);
  return html`<a class="skip" href="#title" onClick=${(event) => { event.preventDefault(); document.getElementById("title")?.focus(); }}>Skip to the page</a>
    <header class="top"><strong class="brand">Groundstream</strong>
      <nav aria-label="Pages">${MENU.map(([path, words]) => html`<a href="#/${path}"
        aria-current=${path === page ? "page" : page === "camera" && !path ? "true" : null}>${words}</a>`)}</nav>
      <p role="status" class=${error ? "bad" : ""}>${error ?? (service ? `${service.model}, version ${service.version}` : "connecting …")}</p></header>
    <main>${shown()}</main>`;
}

render(html`<${Console} />`, document.getElementById("console"));
