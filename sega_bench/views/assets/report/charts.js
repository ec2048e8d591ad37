// The trade-off of settings, and the curve of each axis.
"use strict";

// Okabe and Ito's colours that stand out on white and on black; shapes differ too.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8F6BD1"];
const SHAPES = ["circle", "triangle", "square", "diamond", "cross", "star", "wye"];
const FIRST_SHOWN = 6;
const NEVER_MORE_IMAGES = 6;
const [TICK_ROOM, DIGIT] = [14, 6.5]; // pixels between the numbers of an axis, and a digit's
const BANDS = { within: "of the change", mean: "of the mean" };

const colourOf = (i) => COLOURS[i % COLOURS.length];
/** Colours and shapes do not come round together. */
const shapeOf = (i) => SHAPES[(i + Math.floor(i / COLOURS.length)) % SHAPES.length];

let chosenSet = -1;
let chosenScore = null;
let chosenBand = "within";
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
  const band = byId("curve-band");
  band.append(...Object.entries(BANDS).map(([name, text]) => el("option", { value: name }, text)));
  band.onchange = () => { chosenBand = band.value; drawCurves(); };
  sets.slice(0, FIRST_SHOWN).forEach((_, i) => shownSets.add(i));
  byId("curve-concepts").replaceChildren(...(sets.length < 2 ? [] : sets.map((label, i) => {
    const box = el("input", { type: "checkbox", checked: shownSets.has(i), onchange: () => {
      if (box.checked) shownSets.add(i); else shownSets.delete(i);
      drawCurves();
    } });
    return el("label", { style: `--colour:${colourOf(i)}` }, box, el("span", { class: "swatch" }), label);
  })));
  if (!Object.keys(curves).length) byId("axes").hidden = true;
  addEventListener("scroll", placeTooltip, { passive: true });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCharts(); } });
}

function drawCharts() {
  drawTradeoff();
  drawCurves();
  drawStudy();
}

/** Whether nothing but the concepts varies: then they are what is compared. */
const isOneSetting = () => sega.sweep.settings.filter(({ set }) => set < 0).length < 2;

/** The points of the trade-off: the settings of the chosen concept set, or the concept sets of the one setting. */
function tradedOff() {
  const { settings, gain, cost, sets } = sega.sweep;
  const bySets = isOneSetting() && sets.length > 1;
  return settings.filter(({ set }) => (bySets ? set >= 0 : set === chosenSet))
    .map((setting) => ({ ...setting, x: setting.scores[cost]?.[0] ?? null, y: setting.scores[gain]?.[0] ?? null,
      ...(isOneSetting() ? { best: false, pareto: false } : {}) }))
    .filter(({ x, y }) => x !== null && y !== null)
    .sort((a, b) => a.pareto - b.pareto || a.best - b.best); // what is drawn last lies on top
}

/** What a point is called. */
const pointLabel = (point) => (isOneSetting() && point.set >= 0 ? sega.sweep.sets[point.set] : settingLabel(point));

function drawTradeoff() {
  const { gain, cost, settings } = sega.sweep;
  const points = tradedOff();
  const holder = byId("tradeoff");
  showBest(settings.find(({ set, best }) => set === chosenSet && best) ?? null);
  byId("advice").replaceChildren(...(sega.sweep.advice.length ? [el("h3", {}, "Where to look next"),
    el("ul", {}, sega.sweep.advice.map((line) => el("li", {}, line)))] : []));
  if (isOneSetting()) byId("setting-title").textContent = "What its setting does";
  if (!points.length) {
    holder.replaceChildren(el("p", { class: "nothing" }, "No setting has both scores yet."));
    byId("tradeoff-legend").textContent = "";
    return;
  }
  const [ends, barred] = isOneSetting() ? [[1, 2], points.length > FIRST_SHOWN ? [] : points]
    : [[5, 6], points.filter(({ pareto }) => pareto)];
  const front = points.filter(({ pareto }) => pareto).sort((a, b) => a.x - b.x);
  const bars = barred.filter(({ scores }) => [gain, cost].every((name) => typeof scores[name][ends[0]] === "number"));
  const reach = (name) => ends.map((end) => ({ scores }) => scores[name][end]);
  const [[y1, y2], [x1, x2]] = [reach(gain), reach(cost)];
  const width = Math.max(280, holder.clientWidth || 640);
  const figure = Plot.plot({
    width, height: Math.round(Math.max(300, Math.min(440, width * 0.62))), marginLeft: 56, marginTop: 28, marginBottom: 48, grid: true,
    ariaLabel: `${title(gain)} against ${title(cost)}, one point a setting`,
    x: { label: `${title(cost)} (less is better) \u2192`, nice: true, labelAnchor: "center", labelOffset: 40, ticks: width < 480 ? 4 : undefined },
    y: { label: `\u2191 ${title(gain)} (more is better)`, nice: true },
    marks: [
      Plot.ruleX(bars, { x: "x", y1, y2, strokeOpacity: 0.3 }),
      Plot.ruleY(bars, { y: "y", x1, x2, strokeOpacity: 0.3 }),
      Plot.line(front, { x: "x", y: "y", curve: "step-after", stroke: "var(--accent)", strokeWidth: 1.5, strokeDasharray: "4 3" }),
      Plot.dot(points, {
        x: "x", y: "y", className: "points", sort: null,
        r: (point) => (point.best ? 9 : point.pareto ? 6 : isOneSetting() ? 6 : 4.5),
        symbol: (point) => (point.best ? "star" : isOneSetting() ? shapeOf(Math.max(0, point.set)) : "circle"),
        fill: (point) => (isOneSetting() ? colourOf(Math.max(0, point.set)) : point.pareto ? "var(--accent)" : "var(--faint)"),
        stroke: "var(--paper)", strokeWidth: 1,
      }),
      isOneSetting() && points.length > 1 ? Plot.text(points, { x: "x", y: "y", text: pointLabel, dy: -12, fontSize: 10, className: "labels" }) : null,
    ],
    r: { type: "identity" }, symbol: { type: "identity" }, color: { type: "identity" },
  });
  holder.replaceChildren(figure);
  thin(figure.querySelectorAll("[class*=labels] text"));
  figure.querySelectorAll("[class*=points] path").forEach((path) => makePoint(path, points[path.__data__]));
  byId("tradeoff-legend").textContent = (isOneSetting()
    ? `One point a concept set${bars.length ? ", the lines their 95 % intervals" : ""}. `
    : "One point a setting. Blue: the Pareto front, no other setting gains more at less cost. Star: the " + (sega.sweep.is_study ? "setting to use. " : "verdict, the gentlest setting that works. ")
      + "Lines: where the difference to the star lies, in pairs of the same prompt, seed and concept (95 %). ")
    + "Point at one to see its images, click to open them.";
}

/** Of labels that lie on each other the first stays; what the others say, pointing at their marks does too. */
function thin(labels) {
  const kept = [];
  for (const label of labels) {
    const box = label.getBoundingClientRect();
    const meets = kept.some((other) => box.left < other.right && other.left < box.right
      && box.top < other.bottom && other.top < box.bottom);
    if (meets) label.remove(); else kept.push(box);
  }
}

/** Make a mark of the chart something to point at, tab to and open. */
function makePoint(path, point) {
  const open = () => { hideTooltip(); openGallery(point, point.set, path); };
  const label = `${pointLabel(point)}: ${title(sega.sweep.gain)} ${score("", point.y)}, ${title(sega.sweep.cost)} ${score("", point.x)}`;
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
    el("strong", {}, pointLabel(point)), settingScores(point, "small"),
    el("div", { class: "strip" }, sample(point, point.set, NEVER_MORE_IMAGES).map((row) =>
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
    byId("best").replaceChildren(el("p", { class: "nothing" }, sega.sweep.is_study ? "The study recommends no setting."
      : sega.sweep.verdicts[chosenSet + 1]?.[0] ?? "No setting has been judged."));
    return;
  }
  const { axes, values, gain, cost, sets } = sega.sweep;
  const rows = sample(best, chosenSet, 6);
  byId("best").replaceChildren(
    el("h3", {}, isOneSetting() ? "The one setting" : sega.sweep.is_study ? "\u2605 The setting to use" : "\u2605 The verdict", chosenSet >= 0 ? ` for ${sets[chosenSet]}` : ""),
    ...(sega.sweep.verdicts[chosenSet + 1] ?? []).map((line) => el("p", { class: "verdict" }, line)),
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
  const [low, high] = chosenBand === "within" ? [5, 6] : [1, 2];
  byId("curves").replaceChildren(...Object.entries(curves).map(([axis, all]) => {
    const rows = all.filter(({ set }) => (one ? set < 0 : shownSets.has(set)))
      .map((row) => ({ place: row.at[0], set: Math.max(0, row.set), scores: row.scores[chosenScore] ?? [] }))
      .map((row) => ({ ...row, mean: row.scores[0] ?? null, low: row.scores[low] ?? null, high: row.scores[high] ?? null }))
      .filter(({ mean, place }) => mean !== null && place >= 0)
      .sort((a, b) => a.place - b.place);
    return el("figure", { class: "card chart" }, el("h3", {}, axis),
      rows.length ? curve(axis, rows) : el("p", { class: "nothing" }, "Not scored yet."));
  }));
  byId("curve-note").textContent = "Mean over prompts and seeds, of the cells that differ in this axis alone. "
    + (chosenBand === "within"
      ? "The band is the 95 % interval of how far each value lies from the whole axis, every image compared with itself."
      : "The band is the 95 % interval of the mean: what other prompts and seeds may come to.");
}

/** The width of each of so many charts in cards, as many beside each other as fit. */
function besideEachOther(holder, count) {
  const whole = holder.clientWidth || 560;
  const beside = Math.max(1, Math.min(count, Math.floor((whole + 16) / 396)));
  return Math.max(260, Math.min(560, (whole - 16 * (beside - 1)) / beside - 38));
}

/** Values of an axis that can be written side by side, the first and the last among them. */
function ticksOf(values, width, isLog) {
  const sorted = d3.sort(values);
  const scale = (isLog ? d3.scaleLog : d3.scaleLinear)([sorted[0], sorted.at(-1)], [0, width]);
  const half = (value) => (tick(value).length * DIGIT + TICK_ROOM) / 2;
  const meet = (a, b) => scale(b) - scale(a) < half(a) + half(b);
  const kept = [];
  for (const value of sorted) {
    const isLast = value === sorted.at(-1);
    while (isLast && kept.length > 1 && meet(kept.at(-1), value)) kept.pop();
    if (!kept.length || !meet(kept.at(-1), value)) kept.push(value);
  }
  return kept;
}

/** A number at an axis. */
const tick = (value) => said(Number(value.toPrecision(4)));

/** What the x axis of a curve is like: its values in their order if they are numbers, else side by side. */
function xOf(values, width, isLog = false) {
  if (areNumbers(values)) {
    return { marginBottom: 32,
      x: { type: isLog ? "log" : "linear", label: null, ticks: ticksOf(values, width - 72, isLog), tickFormat: tick } };
  }
  const isLong = values.length > 5;
  return { marginBottom: isLong ? 70 : 32,
    x: { label: null, type: "point", domain: values.map(said), padding: 0.5, tickRotate: isLong ? -30 : 0 } };
}

/** What the y axis of a score is like. */
const yOf = (name) => ({ label: title(name), nice: true, tickFormat: name === "changed_fraction" ? "%" : undefined });

function curve(axis, rows) {
  const values = sega.sweep.values[axis];
  const numeric = areNumbers(values);
  const width = besideEachOther(byId("curves"), Object.keys(sega.sweep.curves).length);
  const x = numeric ? ({ place }) => values[place] : ({ place }) => said(values[place]);
  const colour = ({ set }) => colourOf(set);
  const known = rows.filter(({ low }) => low !== null);
  const shown = [...new Set(rows.map(({ set }) => set))].sort((a, b) => a - b);
  const sorted = numeric ? d3.sort(rows, (row) => values[row.place]) : rows;
  const described = ({ set, place, scores }) =>
    `${sega.sweep.sets[set] ?? "all"}, ${said(values[place])}: ${estimate(chosenScore, scores)}, n = ${scores[4]}`;
  const dots = (data, options) => Plot.dot(data,
    { x, y: "mean", fill: colour, symbol: ({ set }) => shapeOf(set), r: 4, title: described, tip: true, ...options });
  const aside = (set) => ({ dx: 9 * (shown.indexOf(set) - (shown.length - 1) / 2) }); // else they lie on each other
  const of = (set, data) => data.filter((row) => row.set === set);
  return Plot.plot({
    width, height: 260, marginLeft: 52, grid: true,
    ariaLabel: `${title(chosenScore)} along ${axis}`,
    ...xOf(values, width), y: yOf(chosenScore),
    color: { type: "identity" }, symbol: { type: "identity" },
    marks: numeric ? [
      Plot.areaY(d3.sort(known, (row) => values[row.place]), { x, y1: "low", y2: "high", z: "set", fill: colour, fillOpacity: 0.16 }),
      Plot.line(sorted, { x, y: "mean", z: "set", stroke: colour, strokeWidth: 2 }),
      dots(rows),
    ] : shown.flatMap((set) => [
      Plot.ruleX(of(set, known), { x, y1: "low", y2: "high", stroke: colour, strokeWidth: 2, strokeOpacity: 0.6, ...aside(set) }),
      dots(of(set, rows), aside(set)),
    ]),
  });
}
