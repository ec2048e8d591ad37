// A study's answers: recommended settings with held-out scores, importance of each setting, hypervolume over cost.
"use strict";

let movedScore = null;

function setUpStudy() {
  const { study } = sega.sweep;
  byId("study").hidden = !study;
  if (!study) return;
  byId("recommended").replaceChildren(...study.best.map(recommendation));
  const isHeldOut = study.best.some((best) => best.held_out);
  byId("recommended-note").textContent = !study.best.length ? "No setting is recommended: see Where to look next."
    : "In brackets the 95 % interval over prompts and seeds."
      + (isHeldOut ? " What won was searched for, so its scores there are too good: those held out are what to expect." : "");
  const objectives = [...new Set(study.importance.map(({ objective }) => objective))];
  const choose = byId("moved-score");
  choose.append(...objectives.map((name) => el("option", { value: name }, title(name))));
  byId("moved").hidden = !objectives.length; // too few trials tell nothing of it
  byId("spent").hidden = !study.cost.unet_evals.length;
  [movedScore] = objectives;
  choose.onchange = () => { movedScore = choose.value; drawImportance(); };
}

function drawStudy() {
  if (!sega.sweep.study) return;
  if (!byId("moved").hidden) drawImportance();
  if (!byId("spent").hidden) drawCost();
}

/** A setting to use, what it scores where it was searched for and where it was not, and whether that beats the baseline. */
function recommendation({ concepts, settings, verdict, searched, held_out: heldOut }) {
  const sets = sega.sweep.study.concepts;
  const whose = concepts ?? (sets.length === 1 ? sets[0] : null);
  const value = (one) => (whose && Array.isArray(one)
    ? one.map((own, i) => el("div", {}, el("span", { class: "small" }, `${whose[i].split(",")[0]} `), said(own))) : said(one));
  const told = Object.keys(searched).reduce((text, name) => text.replaceAll(name, title(name)), verdict);
  const over = (name) => (heldOut ?? searched)[name].over_baseline;
  const number = (name, { mean, low, high }, sign = "") => el("td", { class: "number" }, sign, estimate(name, [mean, low, high]));
  return el("div", { class: "card" },
    el("h3", {}, concepts === null ? "For all concepts" : `For ${concepts.join(" + ")} alone`),
    el("dl", { class: "pairs big" }, Object.entries(settings).map(([name, one]) => [el("dt", {}, name), el("dd", {}, value(one))])),
    el("div", { class: "scroll" }, el("table", { class: "claimed" },
      el("thead", {}, el("tr", {}, ["score", "searched", heldOut && "held out", heldOut ? "over baseline, held out" : "over baseline"].filter(Boolean)
        .map((name, i) => el("th", { class: i ? "number" : "" }, name)))),
      el("tbody", {}, Object.keys(searched).map((name) => el("tr", {},
        el("th", { scope: "row" }, title(name)),
        number(name, searched[name].score),
        heldOut && number(name, heldOut[name].score),
        number(name, over(name), over(name).mean > 0 ? "+" : "")))))),
    el("p", { class: "verdict" }, `${told[0].toUpperCase()}${told.slice(1)}.`));
}

/** The curve of each setting on one score, the most important first; all on one scale, so that heights compare. */
function drawImportance() {
  const holder = byId("importance");
  const curves = sega.sweep.study.importance.filter(({ objective }) => objective === movedScore)
    .sort((a, b) => b.importance - a.importance);
  const domain = d3.extent(curves.flatMap(({ means }) => means));
  const width = besideEachOther(holder, curves.length);
  holder.replaceChildren(...curves.map(({ parameter, importance, values, means, is_log: isLog }) => {
    const numeric = areNumbers(values);
    const points = values.map((value, i) => ({ value: numeric ? value : said(value), mean: means[i] }));
    return el("figure", { class: "card chart" },
      el("h3", {}, parameter, el("span", { class: "badge" }, `${Math.round(100 * importance)}\u00a0%`)),
      Plot.plot({
        width, height: 220, marginLeft: 52, grid: true, ariaLabel: `${title(movedScore)} along ${parameter}`,
        ...xOf(values, width, isLog), y: { ...yOf(movedScore), domain },
        marks: [
          numeric ? Plot.line(d3.sort(points, ({ value }) => value), { x: "value", y: "mean", stroke: COLOURS[0], strokeWidth: 2 }) : null,
          Plot.dot(points, { x: "value", y: "mean", fill: COLOURS[0], tip: true,
            title: ({ value, mean }) => `${said(value)}: ${score(movedScore, mean)}` }),
        ],
      }));
  }));
}

/** How far the front had come after so many evaluations. */
function drawCost() {
  const holder = byId("cost");
  const { unet_evals: evaluations, hypervolume } = sega.sweep.study.cost;
  const points = evaluations.map((evals, i) => ({ evals, volume: hypervolume[i], trials: i + 1 }));
  const width = Math.max(260, holder.clientWidth || 640);
  holder.replaceChildren(Plot.plot({
    width, height: 240, marginLeft: 56, marginBottom: 44, grid: true, ariaLabel: "Hypervolume of the front over UNet evaluations",
    x: { label: "UNet evaluations \u2192", labelAnchor: "center", labelOffset: 38, ticks: width < 480 ? 4 : undefined },
    y: { label: "\u2191 hypervolume of the front", nice: true },
    marks: [
      Plot.line(points, { x: "evals", y: "volume", curve: "step-after", stroke: COLOURS[0], strokeWidth: 2 }),
      Plot.dot(points, { x: "evals", y: "volume", r: 2.5, fill: COLOURS[0], tip: true,
        title: ({ evals, volume, trials }) =>
          `${plural(trials, "trial")}, ${plural(evals, "evaluation")}: ${volume.toPrecision(4)}` }),
    ],
  }));
}
