// The trade-off of settings, and the curve of each axis.
"use strict";

// Okabe and Ito's colours that stand out on white and on black; shapes differ too.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8F6BD1"];
const SHAPES = ["circle", "triangle", "square", "diamond", "cross", "star", "wye"];
const FIRST_SHOWN = 6;
const NEVER_MORE_IMAGES = 6;

let chosenSet = -1;
let chosenScore = null;
let pointedAt = null;
const shownSets = new Set();

function setUpCharts() {
  const { sets, reduced, gain, curves } = sega.sweep;
  const concept = byId("setting-concept");
  concept.append(el("option", { value: -1 }, "all together"), ...sets.map((label, i) => el("option", { value: i }, label)));
  concept.closest("label").hidden = sets.length < 2;
  concept.onchange = () => { chosenSet = Number(concept.value); drawTradeoff(); };
  const choose = byId("curve-score");
  choose.append(...reduced.map((name) => el("option", { value: name }, title(name))));
  chosenScore = reduced.includes(gain) ? gain : reduced[0];
  choose.value = chosenScore;
  choose.onchange = () => { chosenScore = choose.value; drawCurves(); };
  sets.slice(0, FIRST_SHOWN).forEach((_, i) => shownSets.add(i));
  byId("curve-concepts").replaceChildren(...(sets.length < 2 ? [] : sets.map((label, i) => {
    const box = el("input", { type: "checkbox", checked: shownSets.has(i), onchange: () => {
      if (box.checked) shownSets.add(i); else shownSets.delete(i);
      drawCurves();
    } });
    return el("label", { style: `--colour:${COLOURS[i % COLOURS.length]}` }, box, el("span", { class: "swatch" }), label);
  })));
  if (!Object.keys(curves).length) byId("axes").hidden = true;
  addEventListener("scroll", placeTooltip, { passive: true });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCharts(); } });
}

function drawCharts() {
  drawTradeoff();
  drawCurves();
}

/** The settings of the chosen concept set that have both scores. */
function tradedOff() {
  const { settings, gain, cost } = sega.sweep;
  return settings.filter((setting) => setting.set === chosenSet)
    .map((setting) => ({ ...setting, x: setting.scores[cost]?.[0] ?? null, y: setting.scores[gain]?.[0] ?? null }))
    .filter(({ x, y }) => x !== null && y !== null)
    .sort((a, b) => a.pareto - b.pareto || a.best - b.best); // what is drawn last lies on top
}

function drawTradeoff() {
  const { gain, cost } = sega.sweep;
  const points = tradedOff();
  const holder = byId("tradeoff");
  const best = points.find((point) => point.best) ?? null;
  showBest(best);
  byId("advice").replaceChildren(...(sega.sweep.advice.length ? [el("h3", {}, "Where to look next"),
    el("ul", {}, sega.sweep.advice.map((line) => el("li", {}, line)))] : []));
  if (!points.length) {
    holder.replaceChildren(el("p", { class: "nothing" }, "No setting has both scores yet."));
    byId("tradeoff-legend").textContent = "";
    return;
  }
  const front = points.filter((point) => point.pareto).sort((a, b) => a.x - b.x);
  const bars = front.filter(({ scores }) => scores[gain][1] !== null && scores[cost][1] !== null);
  const width = Math.max(280, holder.clientWidth || 640);
  const figure = Plot.plot({
    width, height: Math.round(Math.max(300, Math.min(440, width * 0.62))), marginLeft: 56, marginBottom: 48, grid: true,
    ariaLabel: `${title(gain)} against ${title(cost)}, one point a setting`,
    x: { label: `${title(cost)} (less is better) \u2192`, nice: true, labelAnchor: "center", labelOffset: 40 },
    y: { label: `\u2191 ${title(gain)} (more is better)`, nice: true },
    marks: [
      Plot.ruleX(bars, { x: "x", y1: ({ scores }) => scores[gain][1], y2: ({ scores }) => scores[gain][2], strokeOpacity: 0.25 }),
      Plot.ruleY(bars, { y: "y", x1: ({ scores }) => scores[cost][1], x2: ({ scores }) => scores[cost][2], strokeOpacity: 0.25 }),
      Plot.line(front, { x: "x", y: "y", curve: "step-after", stroke: "var(--accent)", strokeWidth: 1.5, strokeDasharray: "4 3" }),
      Plot.dot(points, {
        x: "x", y: "y", className: "points", sort: null,
        r: (point) => (point.best ? 9 : point.pareto ? 6 : 4.5), symbol: (point) => (point.best ? "star" : "circle"),
        fill: (point) => (point.pareto ? "var(--accent)" : "var(--faint)"), stroke: "var(--paper)", strokeWidth: 1,
      }),
    ],
    r: { type: "identity" }, symbol: { type: "identity" }, color: { type: "identity" },
  });
  holder.replaceChildren(figure);
  figure.querySelectorAll("[class*=points] path").forEach((path) => makePoint(path, points[path.__data__]));
  byId("tradeoff-legend").textContent =
    "One point a setting. Blue: the Pareto front, no other setting gains more at less cost, with 95 % intervals. "
    + "Star: the best trade-off. Point at one to see its images, click to open them.";
}

/** Make a mark of the chart something to point at, tab to and open. */
function makePoint(path, point) {
  const open = () => { hideTooltip(); openGallery(point, chosenSet, path); };
  const label = `${settingLabel(point)}: ${title(sega.sweep.gain)} ${score("", point.y)}, ${title(sega.sweep.cost)} ${score("", point.x)}`;
  for (const [name, value] of Object.entries({ tabindex: 0, role: "button", "aria-label": label, "data-at": point.at.join() })) {
    path.setAttribute(name, value);
  }
  path.addEventListener("pointerenter", () => showTooltip(path, point));
  path.addEventListener("pointerleave", hideTooltip);
  path.addEventListener("focus", () => showTooltip(path, point));
  path.addEventListener("blur", hideTooltip);
  path.addEventListener("click", open);
  path.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); }
  });
}

/** A few of a setting's rows, taken evenly. */
function sample(setting, set, most) {
  const rows = sega.rowsOf(set, setting.at).filter((row) => !sega.absence(row));
  const count = Math.min(most, rows.length);
  return Array.from({ length: count }, (_, i) => rows[Math.round((i * (rows.length - 1)) / Math.max(1, count - 1))]);
}

function showTooltip(path, point) {
  const tooltip = byId("tooltip");
  tooltip.replaceChildren(
    el("strong", {}, settingLabel(point)), settingScores(point, "small"),
    el("div", { class: "strip" }, sample(point, chosenSet, NEVER_MORE_IMAGES).map((row) =>
      el("span", { class: isVeiled(row) ? "flagged" : "" }, el("span", { class: "veil" }, picture(row, { lazy: false }))))));
  pointedAt = path;
  placeTooltip();
}

/** Beside what it is about, wherever that is scrolled to. */
function placeTooltip() {
  const tooltip = byId("tooltip");
  const box = pointedAt?.getBoundingClientRect();
  tooltip.hidden = !box || box.bottom < 0 || box.top > innerHeight;
  if (tooltip.hidden) return;
  const left = Math.min(innerWidth - tooltip.offsetWidth - 8, Math.max(8, box.left + box.width / 2 - tooltip.offsetWidth / 2));
  const above = box.top - tooltip.offsetHeight - 10;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${above > 8 ? above : box.bottom + 10}px`;
}

function hideTooltip() {
  pointedAt = null;
  placeTooltip();
}

/** The setting to use, and what it looks like. */
function showBest(best) {
  if (!best) {
    byId("best").replaceChildren(el("p", { class: "nothing" }, "No setting is marked best: none has both scores."));
    return;
  }
  const { axes, values, gain, cost, sets } = sega.sweep;
  const rows = sample(best, chosenSet, 6);
  byId("best").replaceChildren(
    el("h3", {}, "\u2605 Best trade-off", chosenSet >= 0 ? ` for ${sets[chosenSet]}` : ""),
    el("dl", { class: "pairs big" }, axes.map((axis, i) => [el("dt", {}, axis), el("dd", {}, said(values[axis][best.at[i]]))])),
    el("dl", { class: "pairs" }, [gain, cost, "changed_fraction"].filter((name) => best.scores[name]).map((name) =>
      [el("dt", {}, title(name)), el("dd", {}, estimate(name, best.scores[name]))])),
    el("div", { class: "tiles best" }, rows.map((row) => {
      const pair = el("span", { class: "before" }, tile(sega.reference(row), { among: [sega.reference(row)] }), tile(row, { among: rows }));
      return el("figure", {}, pair, el("figcaption", {}, cellLabel(row)));
    })),
    el("button", { type: "button", id: "open-best", onclick: () => openGallery(best, chosenSet) },
      `Open all ${sega.rowsOf(chosenSet, best.at).length || ""} images`));
}

function drawCurves() {
  const { curves, sets } = sega.sweep;
  const one = sets.length < 2;
  byId("curves").replaceChildren(...Object.entries(curves).map(([axis, all]) => {
    const rows = all.filter(({ set }) => (one ? set < 0 : shownSets.has(set)))
      .map((row) => ({ place: row.at[0], set: Math.max(0, row.set), n: row.scores[chosenScore]?.[4],
        mean: row.scores[chosenScore]?.[0] ?? null, low: row.scores[chosenScore]?.[1] ?? null, high: row.scores[chosenScore]?.[2] ?? null }))
      .filter(({ mean, place }) => mean !== null && place >= 0)
      .sort((a, b) => a.place - b.place);
    return el("figure", { class: "card chart" }, el("h3", {}, axis),
      rows.length ? curve(axis, rows) : el("p", { class: "nothing" }, "Not scored yet."));
  }));
}

function curve(axis, rows) {
  const values = sega.sweep.values[axis];
  const numeric = values.every((value) => typeof value === "number");
  const x = numeric ? ({ place }) => values[place] : ({ place }) => said(values[place]);
  const colour = ({ set }) => COLOURS[set % COLOURS.length];
  const known = rows.filter(({ low }) => low !== null);
  const sorted = numeric ? d3.sort(rows, (row) => values[row.place]) : rows;
  const described = (row) =>
    `${sega.sweep.sets[row.set] ?? "all"}, ${said(values[row.place])}: ${estimate(chosenScore, [row.mean, row.low, row.high])}, n = ${row.n}`;
  const spread = numeric
    ? Plot.areaY(d3.sort(known, (row) => values[row.place]), { x, y1: "low", y2: "high", z: "set", fill: colour, fillOpacity: 0.14 })
    : Plot.ruleX(known, { x, y1: "low", y2: "high", stroke: colour, strokeWidth: 2, strokeOpacity: 0.5 });
  return Plot.plot({
    width: Math.max(260, Math.min(560, (byId("curves").clientWidth || 560) - 40)), height: 260, marginLeft: 52, grid: true,
    ariaLabel: `${title(chosenScore)} along ${axis}`,
    x: numeric ? { label: null, ticks: values.length <= 8 ? values : 8, tickFormat: said }
      : { label: null, type: "point", domain: values.map(said), padding: 0.5, tickRotate: values.length > 5 ? -30 : 0 },
    marginBottom: !numeric && values.length > 5 ? 70 : 32,
    y: { label: title(chosenScore), nice: true, tickFormat: chosenScore === "changed_fraction" ? "%" : undefined },
    color: { type: "identity" }, symbol: { type: "identity" },
    marks: [
      spread,
      numeric ? Plot.line(sorted, { x, y: "mean", z: "set", stroke: colour, strokeWidth: 2 }) : null,
      Plot.dot(rows, { x, y: "mean", fill: colour, symbol: ({ set }) => SHAPES[set % SHAPES.length], r: 4, title: described, tip: true }),
    ],
  });
}
