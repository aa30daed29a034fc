"use strict";
(() => {
  const AT_ONCE = 50;
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data-examples").textContent);
  const section = document.getElementById("examples");
  const find = (selector) => section.querySelector(selector);
  const list = find(".list"), more = find(".more"), kinds = find(".kinds");
  const search = find("input"), slices = find("select"), count = find(".count");
  // What a link may say after #: filter (a kind), slice (column=value), search (words).
  const state = { filter: "", slice: "", search: "" };
  let matching = data.rows, shown = 0;

  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // never markup
    return element;
  };
  const number = (value) => value.toLocaleString("en-US");
  const isBinary = "neither" in data.kinds || "lost" in data.kinds && data.kinds.lost.includes("right");
  const scored = (value) =>
    value === null || value === undefined ? "" : isBinary ? (value ? " ✓" : " ✗") : " " + value.toFixed(3);

  const answer = (row, role) => {
    const box = make("div");
    box.append(make("h3", "", role + scored(row.scores[role])), make("div", "text", row.answers[role]));
    return box;
  };
  const drawn = (row) => {
    const item = make("li", row.kind);
    const head = make("div", "kind");
    head.append(make("b", "", data.kinds[row.kind]), make("span", "", row.id));
    for (const [column, value] of Object.entries(row.slices)) head.append(make("span", "", column + ": " + value));
    const answers = make("div", "answers");
    answers.append(answer(row, "teacher"), answer(row, "student"));
    item.append(head, make("div", "question text", row.question));
    if (row.expected !== null) {
      const expected = make("div", "expected text");
      expected.append(make("span", "", "expected"), row.expected);
      item.append(expected);
    }
    item.append(answers);
    const others = Object.keys(row.answers).filter((role) => role !== "teacher" && role !== "student");
    if (others.length) {
      const fold = make("details"), rest = make("div", "answers");
      rest.append(...others.map((role) => answer(row, role)));
      fold.append(make("summary", "", others.join(", ")), rest);
      item.append(fold);
    }
    return item;
  };

  const showMore = () => {
    const next = matching.slice(shown, shown + AT_ONCE);
    list.append(...next.map(drawn));
    shown += next.length;
    more.hidden = shown >= matching.length;
    count.textContent = `${number(shown)} of ${number(matching.length)} shown`;
    root.dataset.shown = shown;
    root.dataset.matching = matching.length;
  };
  const words = (row) =>
    (row.words ??= [row.id, row.question, row.expected ?? "", ...Object.values(row.answers)].join("\n").toLowerCase());
  const matches = (row, wanted, column, value) =>
    (!state.filter || row.kind === state.filter) &&
    (!column || row.slices[column] === value) &&
    (!wanted || words(row).includes(wanted));
  const apply = () => {
    const wanted = state.search.trim().toLowerCase();
    const at = state.slice.indexOf("=");
    const column = state.slice.slice(0, Math.max(at, 0)), value = state.slice.slice(at + 1);
    matching = data.rows.filter((row) => matches(row, wanted, column, value));
    list.replaceChildren();
    shown = 0;
    for (const button of kinds.children) button.setAttribute("aria-pressed", String(button.value === state.filter));
    search.value = state.search;
    slices.value = state.slice;
    showMore();
  };

  const read = () => {
    if (!location.hash.includes("=")) return false; // the place of a section
    const params = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(state)) state[name] = params.get(name) ?? "";
    return true;
  };
  const set = (name, value) => {
    state[name] = value;
    const params = new URLSearchParams(Object.entries(state).filter(([, wanted]) => wanted));
    try {
      history.replaceState(null, "", "#" + params);
    } catch {
      // a page within another may not change its address
    }
    apply();
  };

  for (const [kind, name] of [["", "all"], ...Object.entries(data.kinds)]) {
    const button = make("button", "", `${name} ${number(kind ? data.counts[kind] : data.num_examples)}`);
    button.type = "button";
    button.value = kind;
    button.addEventListener("click", () => set("filter", kind));
    kinds.append(button);
  }
  const values = new Set(data.rows.flatMap((row) => Object.entries(row.slices).map((pair) => pair.join("="))));
  slices.append(new Option("every slice", ""), ...[...values].sort().map((name) => new Option(name.replace("=", ": "), name)));
  slices.hidden = !values.size;
  slices.addEventListener("change", () => set("slice", slices.value));
  let pause;
  search.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => set("search", search.value), 120);
  });
  more.addEventListener("click", showMore);
  window.addEventListener("hashchange", () => read() && apply());

  find(".controls").hidden = false;
  const linked = read();
  apply();
  if (linked) section.scrollIntoView();
  root.dataset.readyMilliseconds = performance.now().toFixed(0);
  const measure = () => (root.dataset.overflow = root.scrollWidth - root.clientWidth);
  window.addEventListener("resize", measure);
  measure();
})();
