"""What a deployment costs, from the price of a machine and what was measured on it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from burnish.errors import JobError, MeasureError

HOURS_A_MONTH = 730.0  # 365 days of 24 hours over 12 months, as cloud price lists count
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Kind(msgspec.Struct, frozen=True):
    """A kind of cloud machine: prices.toml says what each field means."""

    cloud: str
    price_per_hour: Positive
    cores: Annotated[int, msgspec.Meta(ge=1)]
    int8_gmacs: Positive
    gbytes: Positive
    as_of: str
    source: str
    isa: str = ""
    gpu: str = ""


class About(msgspec.Struct, frozen=True):
    egress_per_gb: Annotated[float, msgspec.Meta(ge=0)]
    currency: str = "USD"


class Prices(msgspec.Struct, frozen=True):
    """The price file."""

    about: About
    kinds: dict[str, Kind]

    @classmethod
    def read(cls) -> Prices:
        """That which comes with burnish, or the one that BURNISH_PRICES names; JobError names the entry that is wrong."""
        return table(cls, "prices.toml", "BURNISH_PRICES")


Table = TypeVar("Table", bound=msgspec.Struct)


def table(kind: type[Table], name: str, variable: str) -> Table:
    """A data file beside this one, or the user's own that the environment `variable` names."""
    path = Path(os.environ.get(variable) or Path(__file__).with_name(name))
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except OSError as error:
        raise JobError(f"cannot read {path}, which {variable} names: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        said = str(error).replace("`", "").replace("$.", "").replace("$", "the file")
        raise JobError(f"{path.name}: {said[0].lower()}{said[1:]}") from None


def usd_per_million(price_per_hour: float, cores: int, candidates_per_second_per_core: float) -> float:
    """US dollars for a million ranked candidates on a machine whose cores are all busy at that rate."""
    if not (price_per_hour > 0 and candidates_per_second_per_core > 0 and cores > 0):
        raise MeasureError(
            f"a price needs a machine that costs more than 0 an hour and scores more than 0 candidates a second; met ${price_per_hour:g} "
            f"and {candidates_per_second_per_core:g} candidates. For a machine that is paid for already, leave its price out"
        )
    return price_per_hour / 3600 / cores / candidates_per_second_per_core * 1e6


def usd_per_month(price_per_hour: float, machines: int) -> float:
    """US dollars a month for machines that run all the time."""
    return price_per_hour * machines * HOURS_A_MONTH
