for (const player of document.querySelectorAll(".player")) {
  const frames = Number(player.dataset.frames), dial = player.querySelector("input"), button = player.querySelector("button");
  let frame = Math.floor(frames / 2), timer = null;
  const show = (n) => { frame = n; dial.value = n; player.style.setProperty("--frame", n); };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
  const play = () => { timer = setInterval(() => show((frame + 1) % frames), 220); button.textContent = "pause"; };
  button.onclick = () => (timer ? stop() : play());
  dial.oninput = () => { stop(); show(Number(dial.value)); };
  show(frame);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.querySelector("button").onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.value ?? "";
      const order = new Intl.Collator(undefined, { numeric: true });
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a), y = value(b), p = Number(x), q = Number(y);
        return x !== "" && y !== "" && !isNaN(p) && !isNaN(q) ? p - q : order.compare(x, y);
      });
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...(up ? rows : rows.reverse()));
    };
  });
}
