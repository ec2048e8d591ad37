// Puts the page together: what the first script holds at once, the cells as they come.
"use strict";

function chooseTheme() {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  byId("theme").onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; };
}

async function start() {
  chooseTheme();
  if (!sega.sweep) {
    byId("name").textContent = "The report's data is missing";
    byId("description").textContent = "Copy the whole folder, or build it again: python -m sega_bench.views.report FOLDER";
    return;
  }
  showAsked();
  setUpCharts();
  setUpStudy();
  setUpClaims();
  setUpPictures();
  setUpTable();
  document.querySelectorAll("nav a").forEach((link) => { link.hidden = document.querySelector(link.hash).hidden; });
  drawCharts();
  let drawn = 0;
  sega.onRows(() => {
    // Every part is searched at once where it is the first or the last; between them a drawing a part is too much.
    if (drawn && sega.count < sega.sweep.counts.rows) return;
    drawn = sega.count;
    drawTradeoff();
    drawGrid();
    searchTable();
  });
  if (sega.sweep.counts.rows === 0) {
    byId("picture-note").textContent = "No cell has been run yet.";
    byId("table-note").textContent = "No cell has been run yet.";
  }
  await new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); }); // what there is, is seen first
  await sega.load();
  document.documentElement.dataset.loaded = String(sega.count);
}

start();
