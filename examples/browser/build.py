"""A directory that any web server can serve: the demo's ranker in WebAssembly, and baskets for it to rank on the visitor's device.

    burnish compile ../complete_journey/job.toml --recipe int8-int4-tables --out out/artifact
    python build.py out/artifact out/site
    python -m http.server -d out/site 8080        and open http://localhost:8080

A basket is one request with a few hundred products (DATA/validation.parquet); the page shows how many of those it ranks first were bought.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

import burnish
from burnish.export import export
from burnish.inputs import Half

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "data" / "complete_journey"
BASKETS, MOST = 12, 400


def build(artifact: Path, out: Path, data: Path = DATA) -> None:
    """Write index.html, page.mjs, baskets.json and ranker/ into `out`, a new or empty directory."""
    export(artifact, "wasm", out=out / "ranker")
    columns = json.loads((data / "columns.json").read_text())
    of_input = {"ids": [*columns["request"], *columns["candidate"]], "dense": columns["dense"]}
    rows = pl.read_parquet(data / "validation.parquet")
    sizes = rows.group_by("basket_id").len().filter(pl.col("len") <= MOST).sort("len", "basket_id", descending=True)
    baskets = []
    with burnish.load(artifact) as scorer:
        halves = [half for spec in scorer.inputs for half in spec.halves]
        for basket in sizes["basket_id"][:BASKETS]:
            part = rows.filter(pl.col("basket_id") == basket)
            request = {h.name: _values(part.head(1), of_input[h.name], h)[0] for h in halves if h.side == "request"}
            candidates = {h.name: _values(part, of_input[h.name], h) for h in halves if h.side == "candidate"}
            scores = scorer(request, candidates)
            baskets.append(
                {
                    "household": part["household_id"][0],
                    "request": {name: array.ravel().tolist() for name, array in request.items()},
                    "candidates": {name: array.ravel().tolist() for name, array in candidates.items()},
                    "product": part["product_id"].to_list(),
                    "bought_before": (part["bought_before"].exp() - 1).round().cast(pl.Int64).to_list(),
                    "price": (part["price"].exp() - 1).round(2).to_list(),
                    "bought": part["label"].to_list(),
                    "scores": [float(score) for score in scores],  # of this machine: the page compares
                }
            )
    (out / "baskets.json").write_text(json.dumps(baskets))
    for name in ("index.html", "page.mjs"):
        shutil.copyfile(HERE / name, out / name)


def _values(part: pl.DataFrame, names: list[str], half: Half) -> Any:
    """(rows, columns of the half) of an input whose columns have those names."""
    chosen = names if half.columns is None else [names[i] for i in half.columns]
    return part.select(chosen).to_numpy(order="c").astype(half.dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    build(options.artifact, options.out, options.data)
    print(f"{options.out}: {sum(f.stat().st_size for f in options.out.rglob('*') if f.is_file()):,} bytes. Serve it with any web server")
