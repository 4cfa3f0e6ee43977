"use strict";
const prompts = JSON.parse(document.getElementById("data").textContent);
const [promptBox, layerBox, text, detail] = ["prompt", "layer", "text", "detail"].map((id) => document.getElementById(id));
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
  return layerBox.value === "all" ? layersHolding(i) / layers.length : layers[Number(layerBox.value)] / shown.heads;
}

function shade() {
  spans.forEach((span, i) => {
    span.style.setProperty("--share", share(i));
    span.classList.toggle("gone", share(i) === 0);
  });
  const all = layerBox.value === "all", most = all ? shown.held[0].length : shown.heads;
  document.getElementById("scale-text").textContent =
    all ? `held by 0 to ${most} layers` : `held by 0 to ${most} heads of layer ${layerBox.value}`;
}

function describe(i) {
  const layers = shown.held[i], late = i >= shown.judged ? ", not judged yet" : "";
  const counts = layers.map((heads, layer) => `layer ${layer}: ${heads}/${shown.heads}`).join(", ");
  return `${JSON.stringify(shown.tokens[i])} at position ${i} (${shown.kinds[i]}${late}): held by ${layersHolding(i)} of ` +
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

function show() {
  shown = prompts[Number(promptBox.value)];
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

prompts.forEach((prompt, i) => option(promptBox, i, prompt.name));
option(layerBox, "all", "layers that still hold a token");
prompts[0].held[0].forEach((_, layer) => option(layerBox, layer, `heads of layer ${layer}`));
promptBox.addEventListener("change", show);
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
show();
