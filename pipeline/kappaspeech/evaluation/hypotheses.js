"use strict";
const body = document.querySelector("tbody"), rows = [...body.rows];
const texts = ["language", "ending", "key"], buttons = [...document.querySelectorAll("th button")];
const search = document.querySelector("input"), choice = document.querySelector("select");
const value = (row, key) => row.querySelector(`[data-${key}]`).dataset[key];
function sort(key, up) {
  const compare = texts.includes(key) ? (x, y) => x.localeCompare(y) : (x, y) => x - y;
  rows.sort((a, b) => compare(value(a, key), value(b, key)) * (up ? 1 : -1));
  body.append(...rows);
  for (const button of buttons) {
    button.removeAttribute("aria-sort");
    if (button.dataset.key === key) button.setAttribute("aria-sort", up ? "ascending" : "descending");
  }
}
for (const button of buttons)
  button.onclick = () => sort(button.dataset.key, button.getAttribute("aria-sort") === "descending");
const contents = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const fits = (choice.value === "" || value(row, "language") === choice.value) &&
      words.every((word) => contents.get(row).includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  document.querySelector("output").textContent = shown < rows.length ? `${shown} of ${rows.length} shown` : "";
}
choice.onchange = search.oninput = filter;
document.querySelector("form").onsubmit = (event) => event.preventDefault();
// #seconds or #-seconds at the end of the address sorts by a column from the start
const wish = location.hash.slice(1), column = wish.replace("-", "");
if (buttons.some((button) => button.dataset.key === column)) sort(column, wish[0] !== "-");
