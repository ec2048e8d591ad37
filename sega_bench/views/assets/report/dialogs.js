// One cell in full, and all cells of one setting.
"use strict";

const PER_GALLERY = 48;
const STAGES = { slider: "Slider", side: "Side by side", flicker: "Flicker", difference: "Difference" };
let stage = "slider";

const closeButton = (dialog) =>
  el("button", { type: "button", class: "quiet close", "aria-label": "Close", onclick: () => dialog.close() }, "\u2715");

/** Show a cell; the arrow keys go through ``among``, the rows it stands among. */
function openCell(row, among, opener = document.activeElement) {
  const dialog = byId("cell");
  const place = among.indexOf(row);
  const step = (by) => {
    const next = among[place + by];
    if (next !== undefined) openCell(next, among, opener);
  };
  dialog.replaceChildren(
    el("header", {},
      el("div", {},
        el("h3", { id: "cell-title" }, cellLabel(row)),
        el("p", { class: "small" }, said(sega.value(row, "prompt")))),
      el("div", { class: "buttons" },
        among.length > 1 && el("button", { type: "button", disabled: place === 0, "aria-label": "Previous cell", onclick: () => step(-1) }, "\u2190"),
        among.length > 1 && el("button", { type: "button", disabled: place === among.length - 1, "aria-label": "Next cell", onclick: () => step(1) }, "\u2192"),
        closeButton(dialog))),
    el("div", { class: "cell" }, cellStage(row), cellFacts(row)),
  );
  dialog.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.type !== "range" && event.target.type !== "radio") step(by);
  };
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => opener?.focus?.();
  if (!dialog.open) dialog.showModal();
}

function cellStage(row) {
  const reference = sega.reference(row);
  const lone = sega.isReference(row) || sega.absence(row) || sega.absence(reference);
  const modes = el("div", { class: "segmented", role: "radiogroup", "aria-label": "How to compare" });
  const view = el("div", { class: "stage" });
  const holder = el("div", { class: "veil" });
  function draw() {
    view.dataset.mode = lone ? "alone" : stage;
    holder.replaceChildren(
      lone ? stack(row, { size: "full", lazy: false })
      : stage === "side" ? el("div", { class: "pair" }, captioned(reference, "unedited"), captioned(row, "edited"))
      : stage === "slider" ? slider(row, reference)
      : stack(row, { size: "full", lazy: false }));
  }
  segmented(modes, "stage", STAGES, stage, (chosen) => { stage = chosen; draw(); });
  view.append(holder);
  if (isVeiled(row)) {
    cover(view);
    view.addEventListener("click", () => uncover(view), { once: true });
  }
  draw();
  return el("div", {}, !lone && modes, view);
}

const captioned = (row, text) =>
  el("figure", {}, picture(row, { size: "full", lazy: false }), el("figcaption", {}, text));

/** The edit to the right of a line that can be moved, the reference to its left. */
function slider(row, reference) {
  const over = picture(reference, { size: "full", lazy: false });
  over.classList.add("over");
  const range = el("input", {
    type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of the unedited image is shown",
    oninput: () => box.style.setProperty("--cut", `${range.value}%`),
  });
  const box = el("div", { class: "slider" }, picture(row, { size: "full", lazy: false }), over,
    el("span", { class: "tag left" }, "unedited"), el("span", { class: "tag right" }, "edited"),
    el("span", { class: "line" }), range);
  return box;
}

function cellFacts(row) {
  const facts = (names, write) => el("dl", { class: "pairs" },
    names.map((name) => [el("dt", {}, title(name)), el("dd", {}, write(name))]));
  const { constants, values, scores } = sega.sweep;
  const hidden = ["prompt", "seed", "concepts", "concept", "status", "error", "replay"];
  const settings = [...Object.keys(values), ...Object.keys(constants)].filter((name) => !hidden.includes(name));
  const told = settings.filter((name) => sega.value(row, name) !== null && (!sega.isReference(row) || !/^(edit_|reverse)/.test(name)));
  if (sega.value(row, "replay") !== null) told.unshift("replay");
  const taken = scores.filter((name) => sega.value(row, name) !== null);
  const error = sega.value(row, "error");
  const call = diffusersCall(row);
  return el("div", { class: "about" },
    error && el("p", { class: "note warn" }, error),
    el("div", { class: "buttons" },
      el("button", { type: "button", id: "copy-call", onclick: () => copy(call, "the diffusers call") }, "Copy as diffusers call"),
      el("button", { type: "button", id: "copy-command", onclick: () => copy(command(row), "the command") }, "Copy as command"),
      !sega.absence(row) && el("a", { class: "button", href: sega.full(row), target: "_blank", rel: "noopener" }, "Open image")),
    el("h4", {}, "Scores"), facts(taken, (name) => score(name, sega.value(row, name))),
    el("h4", {}, "Settings"), facts(told, (name) => written(row, name)),
    el("details", {}, el("summary", {}, "As a diffusers call"), el("pre", {}, call)),
    el("p", { class: "small mono" }, sega.columns.key[row]));
}

/** All cells of one setting. */
function openGallery(setting, set, opener = document.activeElement) {
  const dialog = byId("gallery");
  const rows = sega.rowsOf(set, setting.at);
  const several = sega.sweep.values.prompt.length > 1;
  const tiles = el("div", { class: "tiles" });
  const pages = el("div", { class: "pager" });
  function draw(page) {
    tiles.replaceChildren(...rows.slice(page * PER_GALLERY, (page + 1) * PER_GALLERY).map((row) =>
      tile(row, { among: rows, caption: el("span", { class: "caption", title: said(sega.value(row, "prompt")) },
        cellLabel(row), several && el("br"), several && said(sega.value(row, "prompt"))) })));
    pager(pages, page, Math.ceil(rows.length / PER_GALLERY), draw);
  }
  const modes = el("div", { class: "segmented", role: "radiogroup", "aria-label": "What a tile shows" });
  tiles.dataset.mode = "edit";
  segmented(modes, "gallery-mode", MODES, "edit", (mode) => { tiles.dataset.mode = mode; });
  draw(0);
  dialog.replaceChildren(
    el("header", {},
      el("div", {}, el("h3", { id: "gallery-title" }, settingLabel(setting)), settingScores(setting, "small")),
      el("div", { class: "buttons" }, closeButton(dialog))),
    modes, tiles, pages);
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => opener?.focus?.();
  dialog.showModal();
}

const settingScores = (setting, style) => el("p", { class: style },
  [sega.sweep.gain, sega.sweep.cost, "changed_fraction"]
    .filter((name) => setting.scores[name]?.[0] !== null && setting.scores[name] !== undefined)
    .map((name) => `${title(name)} ${estimate(name, setting.scores[name])}`)
    .concat(`n = ${setting.n}`, setting.failed ? `${setting.failed} failed` : []).join(" \u00b7 "));
