"use strict";
// Sorting, facets, free text, a view in the fragment, downloads. Without it everything can be read.
(() => {
  const $ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const form = document.getElementById("toolbar");
  const data = JSON.parse(document.getElementById("data").textContent);
  const facets = [...new Set($(".facet").map((facet) => facet.dataset.facet))];
  const tables = $("table.cells");
  const order = tables.map((table) => [...table.tBodies[0].rows]);
  let sort = null; // {column, down}
  document.documentElement.classList.add("script");

  // --- what is shown

  const chosen = (facet) => $(`input[name="${facet}"]:checked`, form).map((box) => box.value);

  const said = (row) => $(".name, .sentence", row).map((cell) => cell.textContent).join(" ").toLowerCase();

  function filter() {
    const wanted = facets.map((facet) => [facet, new Set(chosen(facet))]).filter(([, set]) => set.size);
    const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    $("section.run").forEach((section) => {
      const kept = new Set();
      $("table.cells tbody tr", section).forEach((row) => {
        const text = words.length ? said(row) : "";
        row.hidden = !(wanted.every(([facet, set]) => set.has(row.getAttribute(`data-${facet}`))) &&
          words.every((word) => text.includes(word)));
        if (!row.hidden) kept.add(row.dataset.cell);
      });
      shown += kept.size;
      $(".mark", section).forEach((mark) => mark.classList.toggle("out", !kept.has(mark.dataset.cell)));
      $(".drawer", section).forEach((drawer) => {
        drawer.hidden = true;
        $("article", drawer).forEach((article) => {
          article.hidden = !kept.has(article.id.split("-c").pop());
          if (!article.hidden) drawer.hidden = false;
        });
      });
    });
    const total = order.flat().length;
    const all = `${total} cell${total === 1 ? "" : "s"}`;
    document.getElementById("count").textContent = shown === total ? all : `${shown} of ${all}`;
    facets.forEach((facet) => {
      const count = chosen(facet).length;
      document.querySelector(`.facet[data-facet="${facet}"] .chosen`).textContent = count || "";
    });
  }

  // --- in which order

  function key(row, column) {
    const cell = row.cells[column];
    if (!cell || cell.colSpan > 1) return null;
    const shown = $("[data-ref]", cell).find((one) => getComputedStyle(one).display !== "none") || cell;
    return shown.dataset.n !== undefined ? Number(shown.dataset.n) : shown.textContent.trim() || null;
  }

  function arrange() {
    tables.forEach((table, index) => {
      const rows = [...order[index]];
      if (sort) {
        const keys = new Map(rows.map((row) => [row, key(row, sort.column)]));
        rows.sort((one, other) => {
          const [a, b] = [keys.get(one), keys.get(other)];
          if (a === null || b === null) return (a === null) - (b === null); // reasons come last
          const way = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
          return sort.down ? -way : way;
        });
      }
      table.tBodies[0].append(...rows);
      table.classList.toggle("sorted", sort !== null);
      $("thead th", table).forEach((head, column) => {
        head.setAttribute("aria-sort", sort?.column === column ? (sort.down ? "descending" : "ascending") : "none");
      });
    });
  }

  tables.forEach((table) => $("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const same = sort?.column === column;
      sort = same && sort.down ? null : { column, down: Boolean(same) };
      arrange();
      keep();
    });
  }));

  // --- the view in the fragment

  const reference = () => form.elements.ref.value ?? $('input[name="ref"]:checked', form)[0].value;
  const first = $('input[name="ref"]', form)[0].value;

  function keep() {
    const state = new URLSearchParams();
    if (reference() !== first) state.set("ref", reference());
    facets.forEach((facet) => chosen(facet).forEach((value) => state.append(facet, value)));
    if (form.elements.q.value) state.set("q", form.elements.q.value);
    if (sort) state.set("sort", `${sort.column}${sort.down ? "d" : "a"}`);
    history.replaceState(null, "", `#${state}`);
  }

  function open() {
    const fragment = location.hash.slice(1);
    if (!fragment.includes("=")) {
      const place = fragment && document.getElementById(fragment);
      const drawer = place && place.closest("details");
      if (drawer) drawer.open = true;
      if (place) place.scrollIntoView();
      return;
    }
    const state = new URLSearchParams(fragment);
    const radios = $('input[name="ref"]', form);
    (radios.find((radio) => radio.value === state.get("ref")) ?? radios[0]).checked = true;
    facets.forEach((facet) => $(`input[name="${facet}"]`, form).forEach((box) => {
      box.checked = state.getAll(facet).includes(box.value);
    }));
    form.elements.q.value = state.get("q") ?? "";
    const found = /^(\d+)([ad])$/.exec(state.get("sort") ?? "");
    sort = found ? { column: Number(found[1]), down: found[2] === "d" } : null;
    filter();
    arrange();
  }

  form.addEventListener("input", () => { filter(); arrange(); keep(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sort = null; filter(); arrange(); keep(); }));
  window.addEventListener("hashchange", open);
  document.addEventListener("click", (event) => {
    $(".facet[open]").forEach((facet) => { if (!facet.contains(event.target)) facet.open = false; });
    const mark = event.target.closest?.(".mark");
    if (mark) location.hash = `${mark.closest("section.run").dataset.run}-c${mark.dataset.cell}`;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") $(".facet[open]").forEach((facet) => { facet.open = false; facet.querySelector("summary").focus(); });
  });

  // --- the theme is the reader's, not the view's

  $('input[name="theme"]').forEach((radio) => {
    try { if (localStorage.getItem("gradbench-theme") === radio.value) radio.checked = true; } catch { /* no storage here */ }
    radio.addEventListener("change", () => {
      try { localStorage.setItem("gradbench-theme", radio.value); } catch { /* no storage here */ }
    });
  });

  // --- downloads

  // A spreadsheet runs what begins like a formula; an apostrophe makes it text. Numbers stay numbers.
  const field = (value) => {
    const formula = typeof value === "string" && /^[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(value);
    const text = value === null ? "" : `${formula ? "'" : ""}${value}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  function csv(what) {
    const lines = data.flatMap((run, index) => {
      const table = run[what];
      const head = ["run", ...run.axes, ...table.columns.slice(1)];
      const rows = table.rows.map(([cell, ...rest]) => [run.run, ...run.cells[cell], ...rest]);
      return (index ? rows : [head, ...rows]).map((row) => row.map(field).join(","));
    });
    return `${lines.join("\r\n")}\r\n`;
  }

  $("[data-download]").forEach((button) => button.addEventListener("click", () => {
    const json = button.dataset.download === "json";
    const what = button.dataset.what;
    const blob = json
      ? new Blob([JSON.stringify(data, null, 1)], { type: "application/json" })
      : new Blob([csv(what)], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = json ? "gradbench.json" : `gradbench-${what}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));

  open();
})();
