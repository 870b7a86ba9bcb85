// Draws a picture and the boxes that were found in it. Knows no page and no network.

const SIZES = { line: 1 / 250, font: 1 / 32 };
const SHARP = 2; // boxes and labels are drawn so many times finer than a small picture

/** A colour of a label's own, the same in every frame. */
function hue(label) {
  let sum = 0;
  for (const letter of label) sum = (sum * 31 + letter.codePointAt(0)) % 65536;
  return Math.round(sum * 137.508) % 360; // the golden angle sets neighbours far apart
}

/** `dog #3`, or `dog 0.87` where nothing is followed. */
export function nameOf(detection) {
  const id = detection.track_id;
  return `${detection.label} ${id == null ? detection.confidence.toFixed(2) : `#${id}`}`;
}

export function detectionsOf(result) {
  return result ? result.answers.flatMap((answer) => answer.detections) : [];
}

/** In words, for those who do not see the canvas. */
export function inWords(result) {
  const names = detectionsOf(result).map((detection) => detection.label);
  if (!names.length) return result?.answers.filter(({ status }) => status === "OK").map(({ reply }) => reply).find(Boolean) ?? "nothing found";
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => (count === 1 ? name : `${count} × ${name}`)).join(", ");
}

/**
 * Dashed boxes were followed from an earlier frame, solid ones seen by the model in this one. A label stands where it
 * covers no other; one that has no room is left out. Boxes are in pixels of `result.width` x `result.height`.
 */
export function draw(canvas, bitmap, result) {
  const [width, height] = [result?.width ?? bitmap.width, result?.height ?? bitmap.height];
  const scale = Math.min(1, SHARP * bitmap.width / width);
  canvas.width = Math.round(scale * width);
  canvas.height = Math.round(scale * height);
  const pen = canvas.getContext("2d");
  pen.scale(canvas.width / width, canvas.height / height);
  pen.drawImage(bitmap, 0, 0, width, height);
  const size = Math.max(width, height);
  pen.lineWidth = Math.max(2 / scale, size * SIZES.line);
  pen.font = `600 ${Math.max(12 / scale, size * SIZES.font)}px system-ui, sans-serif`;
  pen.textBaseline = "bottom";
  const found = detectionsOf(result).toSorted((a, b) => b.confidence - a.confidence);
  for (const { box: [x1, y1, x2, y2], label, source } of found) {
    pen.strokeStyle = `hsl(${hue(label)} 85% 45%)`;
    pen.setLineDash(source === "TRACKED" ? [3 * pen.lineWidth, 2 * pen.lineWidth] : []);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  const plates = [];
  for (const detection of found) {
    const plate = roomFor(pen, detection, { width, height }, plates);
    if (!plate) continue;
    plates.push(plate);
    pen.fillStyle = `hsl(${hue(detection.label)} 85% 22%)`;
    pen.fillRect(plate.left, plate.top, plate.right - plate.left, plate.bottom - plate.top);
    pen.fillStyle = "white";
    pen.fillText(nameOf(detection), plate.left + 3, plate.bottom - 1);
  }
}

/** Where a detection's label covers no other: above its box, in it or below; null: nowhere. */
function roomFor(pen, detection, size, plates) {
  const [x1, y1, , y2] = detection.box;
  const height = parseFloat(pen.font.match(/([\d.]+)px/)[1]) * 1.2;
  const width = pen.measureText(nameOf(detection)).width + 6;
  const left = Math.max(0, Math.min(x1, size.width - width));
  for (const bottom of [y1, y1 + height, y2 + height]) {
    const plate = { left, right: left + width, top: bottom - height, bottom };
    const isInside = plate.top >= 0 && plate.bottom <= size.height;
    const covers = (other) => plate.left < other.right && other.left < plate.right && plate.top < other.bottom && other.top < plate.bottom;
    if (isInside && !plates.some(covers)) return plate;
  }
  return null;
}
