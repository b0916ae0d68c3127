"""What a deployment costs, from the price of a machine and what was measured on it."""

from __future__ import annotations

from burnish.errors import MeasureError

HOURS_A_MONTH = 730.0  # 365 days of 24 hours over 12 months, as cloud price lists count


def usd_per_million(price_per_hour: float, cores: int, candidates_per_second_per_core: float) -> float:
    """US dollars for a million ranked candidates on a machine whose cores are all busy at that rate."""
    if not (price_per_hour > 0 and candidates_per_second_per_core > 0 and cores > 0):
        raise MeasureError("a price needs a machine that costs more than 0 an hour and scores more than 0 candidates a second")
    return price_per_hour / 3600 / cores / candidates_per_second_per_core * 1e6


def usd_per_month(price_per_hour: float, machines: int) -> float:
    """US dollars a month for machines that run all the time."""
    return price_per_hour * machines * HOURS_A_MONTH
