// The canvas on which phrases are painted, in the browser. `element`, `props`, `trigger` and `watch` come from Gradio.
//   props.phrases  phrases of the prompt, from the server
//   props.value    {canvas: PNG data URL, legend: {colour: phrase}}, to the server after every stroke
// A pixel belongs to one phrase or none: strokes are drawn without smoothing, and later ones cover earlier ones.
const SIZE = 256;
const chips = element.querySelector(".chips");
const canvas = element.querySelector("canvas");
const radius = element.querySelector(".radius");
const context = canvas.getContext("2d", { willReadFrequently: true });
let colours = {}; // phrase -> colour
let chosen = null; // a phrase, or null for the eraser
let last = null; // where the stroke has got to
canvas.width = canvas.height = SIZE;

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function send() {
  const legend = Object.fromEntries(Object.entries(colours).map(([phrase, colour]) => [colour, phrase]));
  props.value = { canvas: canvas.toDataURL("image/png"), legend };
  trigger("input");
}

function choose(phrase) {
  chosen = phrase;
  for (const chip of chips.children) chip.setAttribute("aria-pressed", chip.dataset.phrase === (phrase ?? ""));
}

function erase(colour) { // everything of one colour
  const picture = context.getImageData(0, 0, SIZE, SIZE), [r, g, b] = rgb(colour);
  for (let i = 0; i < picture.data.length; i += 4) {
    if (picture.data[i] === r && picture.data[i + 1] === g && picture.data[i + 2] === b) picture.data[i + 3] = 0;
  }
  context.putImageData(picture, 0, 0);
}

function chip(phrase, label, colour) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.phrase = phrase;
  button.textContent = label;
  button.style.setProperty("--own", colour);
  button.addEventListener("click", () => choose(phrase || null));
  return button;
}

function show(phrases) { // phrases that stay keep their colour and their paint
  const kept = Object.fromEntries(phrases.filter((p) => p in colours).map((p) => [p, colours[p]]));
  for (const [phrase, colour] of Object.entries(colours)) if (!(phrase in kept)) erase(colour);
  const free = props.palette.filter((colour) => !Object.values(kept).includes(colour));
  for (const phrase of phrases) kept[phrase] ??= free.shift();
  const gone = Object.keys(colours).some((phrase) => !(phrase in kept));
  colours = kept;
  chips.replaceChildren(...phrases.map((p) => chip(p, p, colours[p])), chip("", "eraser", "#adb5bd"));
  choose(phrases.includes(chosen) ? chosen : phrases[0] ?? null);
  element.querySelector(".none").hidden = phrases.length > 0;
  if (gone) send();
}

function dab(x, y) {
  const r = Number(radius.value);
  context.fillStyle = chosen === null ? "#000" : colours[chosen];
  for (let dy = -r; dy <= r; dy++) {
    const half = Math.floor(Math.sqrt(r * r - dy * dy));
    const row = [Math.round(x) - half, Math.round(y) + dy, 2 * half + 1, 1];
    context.clearRect(...row);
    if (chosen !== null) context.fillRect(...row);
  }
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  last = at(event);
  dab(...last);
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const [x, y] = at(event), steps = Math.max(1, Math.ceil(Math.hypot(x - last[0], y - last[1]) / 2));
  for (let i = 1; i <= steps; i++) dab(last[0] + ((x - last[0]) * i) / steps, last[1] + ((y - last[1]) * i) / steps);
  last = [x, y];
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => { if (last) { last = null; send(); } });
}
element.querySelector(".clear").addEventListener("click", () => {
  context.clearRect(0, 0, SIZE, SIZE);
  send();
});
watch("phrases", () => show(props.phrases));

show(props.phrases);
for (const [phrase, x, y, width, height] of props.example) { // what is painted at first sight, fractions of the canvas
  if (!(phrase in colours)) continue;
  context.fillStyle = colours[phrase];
  context.fillRect(x * SIZE, y * SIZE, width * SIZE, height * SIZE);
}
if (props.example.length) setTimeout(send, 0); // not before the component is in place
