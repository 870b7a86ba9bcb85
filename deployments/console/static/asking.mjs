// Asking: a question about a picture, be it a camera's, a file or the camera of this device.

import { html, useRef, useState } from "./vendor/htm-preact-3.1.1.mjs";
import { Found, Picture, sentence } from "./parts.mjs";
import { ask } from "./service.mjs";

const TASKS = [["DETECT", "where is it?"], ["REFER", "which one is it?"], ["COUNT", "how many?"],
  ["GROUNDED_CAPTION", "describe the picture"], ["CHAT", "anything"]];

/**
 * The form and its answer. `find()` gives the picture to ask about, or throws an Error that says what is missing; `children`
 * stand between the question and the button; `instead(query)`, where given, is asked in its place.
 */
export function Asking({ id, find, instead, children, buttons, words = "Ask" }) {
  const [query, setQuery] = useState("");
  const [task, setTask] = useState("DETECT");
  const [busy, setBusy] = useState(false);
  const [answer, setAnswer] = useState(null);
  const [failure, setFailure] = useState("");
  const fail = (message) => { setAnswer(null); setFailure(message); }; // No old answer stands beside an error.
  async function submit(event) {
    event.preventDefault();
    setFailure("");
    if (instead) { instead(query); return; }
    setBusy(true);
    setAnswer(null);
    try { setAnswer({ picture: await ask(await find(), query, task), at: new Date() }); } catch (error) { fail(error.message); }
    setBusy(false);
  }
  return html`<form onSubmit=${submit} aria-labelledby=${id}>
    <label>Question<input name="query" required=${task !== "GROUNDED_CAPTION"} maxlength="500" placeholder="the red mug"
      autocomplete="off" value=${query} onInput=${(event) => setQuery(event.target.value)} /></label>
    <label>Kind of question<select name="task" value=${task} disabled=${Boolean(instead)} onChange=${(event) => setTask(event.target.value)}>
      ${TASKS.map(([name, label]) => html`<option value=${name}>${label}</option>`)}</select></label>
    ${children}
    <div class="bar"><button type="submit" aria-busy=${busy} disabled=${busy}>${words}</button>${buttons?.(query, fail)}</div>
  </form>
  ${failure && html`<p class="bad" role="alert">${failure}</p>`}
  <p class="answer" role="status">${answer ? sentence(answer.picture.result) || "There is no answer." : busy ? "Looking …" : ""}</p>
  ${answer && html`<figure><${Picture} picture=${answer.picture} label="The picture that was asked about" />
    <figcaption>The picture that was asked about, at ${answer.at.toLocaleTimeString("en-GB")}</figcaption></figure>
    <${Found} result=${answer.picture.result} />`}`;
}

/** The page to ask about a picture file, or with the camera of this device. */
export function AskPage({ device }) {
  const file = useRef();
  const { stream, picture, failure, toggle } = device;
  function find() {
    const chosen = file.current.files[0];
    if (chosen) return chosen;
    file.current.focus();
    throw new Error("Choose a picture first, or start the camera.");
  }
  return html`<section aria-labelledby="title"><h1 id="title" tabindex="-1">Ask</h1>
    <p class="muted">About a picture file, or with the camera of this device. About another camera you ask on its own page.</p>
    <div class="two"><div><${Asking} id="title" find=${find} instead=${stream && ((query) => stream.change(query))}
      words=${stream ? "Ask the camera" : "Ask"}
      buttons=${(query, fail) => html`<button type="button" class="secondary" onClick=${() => toggle(query, fail)}>
        ${stream ? "Stop camera" : "Start camera"}</button>`}>
      <label>Picture file<input name="picture" type="file" accept="image/jpeg,image/png,image/webp,image/bmp" disabled=${Boolean(stream)} ref=${file} /></label>
    <//></div>
    <div>${failure && html`<p class="bad" role="alert">${failure}</p>`}
      ${stream && html`<${Picture} picture=${picture} label="Your camera" /><p>${sentence(picture?.result)}</p><${Found} result=${picture?.result} />`}</div></div>
  </section>`;
}
