"use strict";
// One prompt's tokens, shaded by what holds them; a token under the pointer or the arrow keys is told of.
const [layerBox, text, detail] = ["layer", "text", "detail"].map((id) => document.getElementById(id));
let shown, spans = [], chosen = -1;

function option(box, value, name) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = name;
  box.append(made);
}

function layersHolding(i) {
  return shown.held[i].filter((heads) => heads > 0).length;
}

function share(i) {
  const layers = shown.held[i];
  if (layerBox.value === "heads") return layers.reduce((sum, heads) => sum + heads, 0) / (layers.length * shown.heads);
  return layerBox.value === "all" ? layersHolding(i) / layers.length : layers[Number(layerBox.value)] / shown.heads;
}

// A prompt may be shown without its middle (`left_out` tokens behind the first `cut`).
function position(i) {
  return shown.left_out && i >= shown.cut ? i + shown.left_out : i;
}

function nameLayers(count) {
  option(layerBox, "all", "layers that still hold a token");
  for (let layer = 0; layer < count; layer++) option(layerBox, layer, `heads of layer ${layer}`);
}

function shade() {
  spans.forEach((span, i) => {
    span.style.setProperty("--share", share(i));
    span.classList.toggle("gone", share(i) === 0);
  });
  const most = layerBox.value === "all" ? shown.held[0].length : shown.heads;
  document.getElementById("scale-text").textContent =
    layerBox.value === "heads" ? `held by 0 to ${shown.heads * shown.held[0].length} heads of all layers` :
    layerBox.value === "all" ? `held by 0 to ${most} layers` : `held by 0 to ${most} heads of layer ${layerBox.value}`;
}

function describe(i) {
  const layers = shown.held[i], late = i >= shown.judged ? ", not judged yet" : "";
  const counts = layers.map((heads, layer) => `layer ${layer}: ${heads}/${shown.heads}`).join(", ");
  return `${JSON.stringify(shown.tokens[i])} at position ${position(i)} (${shown.kinds[i]}${late}): held by ${layersHolding(i)} of ` +
    `${layers.length} layers; heads: ${counts}`;
}

function choose(i, scroll) {
  if (i < 0 || i >= spans.length) return;
  if (chosen >= 0) spans[chosen].classList.remove("chosen");
  chosen = i;
  spans[i].classList.add("chosen");
  detail.textContent = describe(i);
  if (scroll) spans[i].scrollIntoView({ block: "center" });
}

// prompt: tokens, kinds, relevant, judged, heads, and held: for each token and layer, how many heads hold it.
function show(prompt) {
  shown = prompt;
  spans = shown.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.textContent = token.replaceAll("\n", "↵\n");
    span.dataset.i = i;
    span.classList.toggle("relevant", shown.relevant[i] === 1);
    span.classList.toggle("fact", shown.kinds[i] === "facts");
    span.classList.toggle("late", i >= shown.judged);
    return span;
  });
  chosen = -1;
  text.replaceChildren(...spans);
  detail.textContent = "Point at a token, or go from one to the next with the arrow keys: what holds it is told here.";
  document.getElementById("fact-legend").hidden = !shown.kinds.includes("facts");
  shade();
}

layerBox.addEventListener("change", shade);
text.addEventListener("pointerover", (event) => {
  if (event.target.dataset.i !== undefined) choose(Number(event.target.dataset.i), false);
});
text.addEventListener("keydown", (event) => {
  const steps = { ArrowRight: chosen + 1, ArrowLeft: Math.max(chosen - 1, 0), Home: 0, End: spans.length - 1 };
  if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose(steps[event.key], true);
});
