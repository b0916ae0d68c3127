import { load } from "./ranker/ranker.mjs";

const ROUNDS = 200;
const MOST_MS = 1000; // of measuring
const shown = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1) + " MiB";

function median(times) {
  return times.sort((a, b) => a - b)[times.length >> 1];
}

function rank(ranker, basket) {
  const times = [];
  let scores;
  const began = performance.now();
  for (let i = 0; i < ROUNDS && performance.now() - began < MOST_MS; i++) {
    const at = performance.now();
    scores = Object.values(ranker.score(basket.request, basket.candidates))[0];
    times.push(performance.now() - at);
  }
  return { scores, ms: median(times), rounds: times.length };
}

function show(ranker, basket) {
  const { scores, ms, rounds } = rank(ranker, basket);
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a]);
  shown("latency").textContent = ms.toFixed(2) + " ms";
  shown("rounds").textContent = rounds;
  shown("products").textContent = scores.length;
  shown("hits").textContent = order.slice(0, 10).filter((i) => basket.bought[i]).length;
  shown("memory").textContent = megabytes(ranker.memoryBytes);
  const rows = order.slice(0, 20).map((i, place) => {
    const row = document.createElement("tr");
    const cells = [place + 1, "No. " + basket.product[i], "$" + basket.price[i].toFixed(2), basket.bought_before[i] || "", scores[i].toFixed(3)];
    for (const text of cells) row.insertCell().textContent = text;
    const bought = row.insertCell();
    bought.textContent = basket.bought[i] ? "✓ bought" : "";
    bought.className = "bought";
    return row;
  });
  shown("list").replaceChildren(...rows);
  const apart = Math.max(...scores.map((score, i) => Math.abs(score - basket.scores[i])));
  shown("parity").textContent =
    apart === 0 ? "Every score has the bits that the exporting machine computed." : `Largest difference to the exporting machine's scores: ${apart.toExponential(1)}.`;
  document.body.dataset.ms = ms;
  document.body.dataset.apart = apart;
}

try {
  const [ranker, baskets, facts] = await Promise.all([
    load(new URL("ranker/", import.meta.url), { piece: 256 << 10, progress: (done, all) => (shown("progress").value = done / all) }),
    fetch("baskets.json").then((answer) => answer.json()),
    fetch("ranker/export.json").then((answer) => answer.json()),
  ]);
  for (const basket of baskets) { // typed once, as an app would hold them
    basket.request.ids = BigInt64Array.from(basket.request.ids, BigInt);
    basket.candidates.ids = BigInt64Array.from(basket.candidates.ids, BigInt);
  }
  shown("progress").hidden = true;
  shown("size").textContent = megabytes(facts.total_bytes);
  const list = shown("household");
  baskets.forEach((basket, i) => list.add(new Option(`${basket.household} (${basket.product.length} products)`, i)));
  list.disabled = false;
  list.addEventListener("change", () => show(ranker, baskets[list.value]));
  show(ranker, baskets[0]);
} catch (error) {
  shown("error").textContent = String(error);
}
