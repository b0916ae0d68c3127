"use strict";
// Sorting, filtering and opening the trials, the figures, and the copy button. The page says everything without it but the figures.
(() => {
  const table = document.getElementById("trials-table");
  const bodies = table ? [...table.tBodies] : [];
  let frontier = null; // the Vega view, once it is drawn

  function pick(id) {
    for (const body of bodies) body.classList.toggle("picked", body.dataset.id === id);
    if (frontier) frontier.signal("picked", id).run();
  }

  function open(body, wanted) {
    const button = body.querySelector(".open");
    button.setAttribute("aria-expanded", String(wanted));
    body.querySelector(".more").hidden = !wanted;
    pick(wanted ? body.dataset.id : "");
    return button;
  }

  function value(body, column, kind) {
    const told = body.rows[0].cells[column].dataset.sort;
    if (kind === "text") return told.toLowerCase();
    return told === "" ? null : Number(told);
  }

  function sort(header, column) {
    const kind = header.querySelector("button").dataset.kind;
    const now = header.getAttribute("aria-sort");
    const direction = now === "ascending" ? "descending" : "ascending";
    for (const other of header.parentNode.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    bodies.sort((a, b) => {
      const [x, y] = [value(a, column, kind), value(b, column, kind)];
      if (x === null || y === null) return (x === null) - (y === null); // what was not measured stays last
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    });
    table.append(...bodies);
  }

  function filter() {
    const words = document.getElementById("find").value.trim().toLowerCase();
    const allowed = new Set([...document.querySelectorAll("input[name=status]:checked")].map((box) => box.value));
    let shown = 0;
    for (const body of bodies) {
      body.hidden = !(allowed.has(body.dataset.status) && body.textContent.toLowerCase().includes(words));
      shown += !body.hidden;
    }
    document.getElementById("shown").textContent = `${shown} of ${bodies.length} trials`;
  }

  if (table) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => sort(header, column));
    });
    for (const body of bodies) {
      const button = body.querySelector(".open");
      button.addEventListener("click", () => open(body, button.getAttribute("aria-expanded") !== "true"));
    }
    document.querySelector(".filter").addEventListener("input", filter);
    document.querySelector(".filter").addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = { actions: false, renderer: "svg", tooltip: { theme: "page" } };
  async function draw(name) {
    if (!specs[name]) return null;
    const { view } = await window.vegaEmbed(`#${name}-figure`, specs[name], options);
    return view;
  }
  Promise.all(["frontier", "latency", "load"].map(draw)).then(([view]) => {
    frontier = view;
    if (view) {
      view.addEventListener("click", (_, item) => {
        const body = item && item.datum && document.getElementById(`trial-${item.datum.id}`);
        if (!body) return;
        body.hidden = false;
        open(body, true).focus({ preventScroll: true });
        body.scrollIntoView({ block: "center" });
      });
    }
    document.documentElement.dataset.drawn = "yes";
  });

  const copy = document.getElementById("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById("command").textContent);
      copy.textContent = "Copied";
    });
  }
})();
