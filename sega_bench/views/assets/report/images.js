// Images of cells, alone or over their reference.
"use strict";

const MODES = { edit: "Edit", flicker: "Flicker", difference: "Difference", reference: "Unedited" };

/** A cell's image, or a hatched place that says why there is none. */
function picture(row, { size = "thumbnail", alt = true, lazy = true } = {}) {
  const why = sega.absence(row);
  if (why) return placeholder(why);
  const image = el("img", {
    src: sega[size](row), loading: lazy ? "lazy" : "eager", decoding: "async", draggable: false,
    width: sega.value(row, "width"), height: sega.value(row, "height"),
    alt: alt ? `${said(sega.value(row, "prompt"))}: ${cellLabel(row)}` : "",
  });
  image.style.aspectRatio = `${image.getAttribute("width")} / ${image.getAttribute("height")}`; // holds the place of an image not yet loaded
  image.addEventListener("error", () => {
    const small = new URL(sega.thumbnail(row), document.baseURI).href; // where the report went without the images
    if (image.src === small) image.replaceWith(placeholder("unreadable"));
    else image.src = small;
  });
  return image;
}

const placeholder = (why) => el("span", { class: "placeholder" }, el("span", {}, why));

/** An edit over its reference; the mode of what it stands in decides what is seen. */
function stack(row, options = {}) {
  const reference = row === undefined ? -1 : sega.reference(row);
  const edit = picture(row, options);
  if (sega.absence(row) || sega.isReference(row) || sega.absence(reference)) return el("span", { class: "stack alone" }, edit);
  const under = picture(reference, { ...options, alt: false });
  under.classList.add("reference");
  return el("span", { class: "stack" }, edit, under);
}

const isVeiled = (row) => row !== undefined && (sega.isFlagged(row) || sega.isFlagged(sega.reference(row)));

/** A button with a cell's images: opens it, but uncovers it first where the safety checker has flagged it. */
function tile(row, { marked = false, among = null, caption = null } = {}) {
  if (row === undefined) return el("span", { class: "tile empty" }, stack(row));
  const button = el(
    "button",
    {
      type: "button", class: `tile${marked ? " marked" : ""}`, dataset: { row },
      title: `${cellLabel(row)}${sega.absence(row) === "failed" ? `: ${said(sega.value(row, "error"))}` : ""}`,
      onclick: () => { if (!uncover(button)) openCell(row, among ?? [row], button); },
    },
    el("span", { class: "veil" }, stack(row)),
    caption,
  );
  if (isVeiled(row)) cover(button);
  return button;
}

function cover(element) {
  element.classList.add("flagged");
  element.append(el("span", { class: "flag" }, "flagged: click to show"));
}

/** Show what is covered; tells whether it was. */
function uncover(element) {
  if (!element.classList.contains("flagged")) return false;
  element.classList.remove("flagged");
  element.querySelector(".flag")?.remove();
  return true;
}

/** Radio buttons side by side. */
function segmented(element, name, choices, chosen, choose) {
  element.replaceChildren(...Object.entries(choices).map(([value, text]) => {
    const input = el("input", { type: "radio", name, value, checked: value === chosen, onchange: () => choose(value) });
    return el("label", {}, input, el("span", {}, text));
  }));
}

/** Buttons to go through pages. */
function pager(element, page, pages, go) {
  element.replaceChildren();
  if (pages < 2) return;
  const button = (text, to, label) =>
    el("button", { type: "button", disabled: to < 0 || to >= pages, "aria-label": label, onclick: () => go(to) }, text);
  element.append(
    button("\u00ab", page > 0 ? 0 : -1, "First page"), button("\u2039", page - 1, "Previous page"),
    el("span", {}, `${page + 1} of ${pages.toLocaleString("en")}`),
    button("\u203a", page + 1, "Next page"), button("\u00bb", page < pages - 1 ? pages - 1 : -1, "Last page"),
  );
}
