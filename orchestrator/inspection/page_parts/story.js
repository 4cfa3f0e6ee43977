const story = JSON.parse(document.getElementById("data").textContent);
const [when, which, told, play] = ["when", "which", "told", "play"].map((id) => document.getElementById(id));
let playing = null;

// For each token and layer, how many heads hold it at a stop.
function heldAt(stop) {
  return story.prompt.tokens.map((_, i) => stop.held.map((row) => row.charCodeAt(i) - story.prompt.zero));
}

function stopAt(number) {
  const stop = story.stops[number];
  when.value = number;
  when.setAttribute("aria-valuetext", stop.name);
  which.textContent = stop.name;
  told.textContent = stop.told;
  for (const line of document.querySelectorAll("svg .now")) {
    line.setAttribute("x1", stop.x);
    line.setAttribute("x2", stop.x);
  }
  const sizes = document.getElementById("sizes-line");
  if (sizes) sizes.setAttribute("points", stop.sizes);
  shown.held = heldAt(stop);
  shade();
  if (chosen >= 0) detail.textContent = describe(chosen);
}

function pause() {
  clearInterval(playing);
  playing = null;
  play.textContent = "Play";
}

when.addEventListener("input", () => { pause(); stopAt(Number(when.value)); });
play.addEventListener("click", () => {
  if (playing !== null) return pause();
  play.textContent = "Pause";
  const last = story.stops.length - 1;
  if (Number(when.value) === last) stopAt(0);
  playing = setInterval(() => {
    stopAt(Math.min(Number(when.value) + 1, last));
    if (Number(when.value) === last) pause();
  }, 1000);
});
option(layerBox, "heads", "layers and heads that hold a token");
nameLayers(story.prompt.layers);
show({ ...story.prompt, held: heldAt(story.stops.at(-1)) });
if (story.prompt.left_out) {
  const gap = document.createElement("em");
  gap.textContent = ` [… ${story.prompt.left_out} tokens that are not shown …] `;
  spans[story.prompt.cut].before(gap);
}
stopAt(story.stops.length - 1);
