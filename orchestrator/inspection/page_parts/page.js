const prompts = JSON.parse(document.getElementById("data").textContent);
const promptBox = document.getElementById("prompt");
prompts.forEach((prompt, i) => option(promptBox, i, prompt.name));
promptBox.addEventListener("change", () => show(prompts[Number(promptBox.value)]));
nameLayers(prompts[0].held[0].length);
show(prompts[0]);
