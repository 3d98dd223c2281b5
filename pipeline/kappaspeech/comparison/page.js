"use strict";
for (const button of document.querySelectorAll("[data-arm]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const part of document.querySelectorAll(".arm-" + button.dataset.arm)) part.classList.toggle("off", !shown);
  });
}
for (const button of document.querySelectorAll("[data-clock]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("button[data-clock]"))
      other.setAttribute("aria-pressed", other === button);
    for (const figure of document.querySelectorAll("figure[data-shown-by]"))
      figure.hidden = figure.dataset.shownBy !== button.dataset.clock;
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const numeric = [...table.tBodies[0].rows].every((row) => !Number.isNaN(Number(value(row))));
      const rows = [...table.tBodies[0].rows].sort((a, b) =>
        numeric ? value(a) - value(b) : value(a).localeCompare(value(b)));
      if (!up) rows.reverse();
      table.tBodies[0].append(...rows);
      /* the other tables keep the same order of arms */
      const order = rows.map((row) => row.dataset.armRow);
      for (const other of document.querySelectorAll("table.follows"))
        other.tBodies[0].append(...order.map((arm) => other.querySelector(`[data-arm-row="${arm}"]`)));
    });
  });
}
/* a narrow page breaks no line between a number and its sign */
const unbroken = (text) => text.replace(/(\d) %/g, "$1\u00a0%").replace(/\bp ([≤=]) /g, "p\u00a0$1\u00a0").replace(/≤ /g, "≤\u00a0");
for (const part of document.querySelectorAll("p.verdict, ul.lead, [data-label]")) {
  const texts = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = unbroken(texts.currentNode.data);
  if (part.dataset.label) part.dataset.label = unbroken(part.dataset.label);
}
document.documentElement.dataset.ready = "yes";
