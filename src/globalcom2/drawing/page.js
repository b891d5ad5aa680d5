for (const root of document.querySelectorAll(".g2:not([data-live])")) {
  root.dataset.live = "yes";
  const panels = JSON.parse(root.querySelector(".numbers").textContent);
  const tip = root.querySelector(".tip");
  const cell = document.createElement("div");
  cell.className = "cell";
  const words = { k: "kept", d: "dropped", p: "padding, not a token", g: "commands, is not read" };
  const numbersOf = (view) => panels[view.dataset.panel][view.dataset.view];
  const percent = (part, whole) => (whole ? Math.round((100 * part) / whole) : 0) + "%";

  function rank(numbers, index) {
    let better = 0;
    for (let i = 0; i < numbers.scores.length; i++) {
      if (numbers.state[i] !== "p" && numbers.scores[i] > numbers.scores[index]) better++;
    }
    return better + 1;
  }

  function describe(numbers, x, y) {
    const index = y * numbers.width + x;
    const state = numbers.state[index];
    const lines = [`${numbers.name}, token in row ${y + 1}, column ${x + 1}: ${words[state]}`];
    if (numbers.scores && state !== "p") {
      lines.push(`score ${numbers.scores[index]}, rank ${rank(numbers, index)} of ${numbers.count} in its view`);
    }
    if (state !== "g") lines.push(`budget of the ${numbers.kind}: ${numbers.kept} of ${numbers.count} tokens, ${percent(numbers.kept, numbers.count)}`);
    return lines.join("\n");
  }

  function show(view, x, y) {
    const numbers = numbersOf(view);
    view.append(cell);
    cell.style.left = (100 * x) / numbers.width + "%";
    cell.style.top = (100 * y) / numbers.height + "%";
    cell.style.width = 100 / numbers.width + "%";
    cell.style.height = 100 / numbers.height + "%";
    tip.textContent = describe(numbers, x, y);
    tip.hidden = false;
    const at = cell.getBoundingClientRect();
    const left = at.right + 14 + tip.offsetWidth > innerWidth ? at.left - 14 - tip.offsetWidth : at.right + 14;
    const top = Math.min(Math.max(4, at.top - 8), innerHeight - tip.offsetHeight - 4);
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, top) + "px";
  }

  function hide() {
    tip.hidden = true;
    cell.remove();
  }

  function pointed(event) {
    const view = event.target.closest(".view");
    if (!view) return hide();
    const box = view.getBoundingClientRect();
    const { width, height } = numbersOf(view);
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    show(view, Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1));
  }

  for (const stage of root.querySelectorAll(".stage")) {
    const views = [...stage.querySelectorAll(".view")];
    const cols = Number(stage.dataset.cols);
    const rows = Math.ceil(views.length / cols);
    let at = null; // the token under the keyboard's cursor, counted through the whole stage
    stage.addEventListener("pointermove", pointed);
    stage.addEventListener("pointerdown", pointed);
    stage.addEventListener("pointerleave", hide);
    stage.addEventListener("blur", hide);
    stage.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const { width, height } = numbersOf(views[0]);
      const next = at ? [at[0] + step[0], at[1] + step[1]] : [0, 0];
      const x = Math.min(Math.max(next[0], 0), cols * width - 1);
      const y = Math.min(Math.max(next[1], 0), rows * height - 1);
      const view = views[Math.floor(y / height) * cols + Math.floor(x / width)];
      if (!view) return;
      at = [x, y];
      show(view, x % width, y % height);
    });
  }
}
