"use strict";
// Sorts and filters the tables of a board, and keeps its drawings in step. Without it all is shown.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const cell = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();

  // Numbers as numbers, words as words, and what is missing last, up or down.
  function order(a, b, down) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = !Number.isNaN(Number(a)) && !Number.isNaN(Number(b));
    const up = numbers ? a - b : a.localeCompare(b);
    return down ? -up : up;
  }

  for (const table of all("table.rows")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => order(cell(a, column), cell(b, column), down)));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  // Among the points that are shown: none costs less and is worth as much. As `plot.pareto`.
  function redraw(plot) {
    for (const line of all(".front", plot)) {
      const points = all(".point:not(.off)", plot)
        .filter((point) => point.dataset.place === line.dataset.place)
        .map((point) => ({ point, cost: +point.dataset.cost, worth: +point.dataset.worth }))
        .sort((a, b) => a.cost - b.cost || b.worth - a.worth);
      const corners = [];
      let last = null;
      for (const { point, cost, worth } of points) {
        const on = !last || worth > last.worth || (worth === last.worth && cost === last.cost);
        point.classList.toggle("on", on);
        if (!on) continue;
        const { x, y } = point.dataset;
        if (last) corners.push(`${x},${last.y}`);
        corners.push(`${x},${y}`);
        last = { cost, worth, y };
      }
      line.setAttribute("points", corners.join(" "));
    }
  }

  const form = document.getElementById("filter");
  const selects = all("select", form);
  const rows = all("table.rows tbody tr");
  function filter() {
    const words = form.elements.text.value.toLowerCase().split(/\s+/);
    const fits = (row) =>
      selects.every(({ name, value }) => !value || row.dataset[name] === value) &&
      words.every((word) => row.textContent.toLowerCase().includes(word));
    const hidden = new Set();
    for (const row of rows) {
      row.hidden = !fits(row);
      if (row.hidden) hidden.add(row.dataset.run);
    }
    for (const point of all(".point")) point.classList.toggle("off", hidden.has(point.dataset.run));
    all(".plot").forEach(redraw);
    for (const part of all(".part")) {
      part.hidden = !all(".rows tbody tr", part).some((row) => !row.hidden);
    }
    const counted = rows.filter((row) => !row.closest(".seeds"));
    const shown = counted.filter((row) => !row.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${counted.length} rows`;
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  // What a point stands for, in words below the drawings and by light in the table.
  for (const point of all(".point")) {
    const part = point.closest(".part");
    const row = all(".rows tbody tr", part).find((one) => one.dataset.run === point.dataset.run);
    const tell = (on) => {
      part.querySelector(".readout").textContent = on ? point.getAttribute("aria-label") : "";
      row.classList.toggle("lit", on);
    };
    for (const event of ["pointerenter", "focus"]) point.addEventListener(event, () => tell(true));
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, () => tell(false));
  }
})();
