"""Numbers for people: as many digits as the measurement supports, always with the unit.

The terminal, the report and the reasons in the records all write their numbers with these functions, so that one
number looks the same wherever it stands. What is joined by `SPACE` must not be torn apart; `plain` is for where a
special space would hinder: terminals and records.
"""

from __future__ import annotations

import math
from datetime import datetime

SPACE = "\u00a0"
"""Between a number and its unit: does not break."""
MISSING = "–"
CONFIDENCE = f"95{SPACE}%"
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def plain(text: str) -> str:
    """With ordinary spaces between numbers and units, and nothing that a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def significant(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, no exponent between 0.0001 and a billion."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return MISSING if math.isnan(value) else "∞" if value > 0 else "−∞"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 9:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - magnitude)
    return f"{round(value, digits - 1 - magnitude):,.{decimals}f}".replace("-", "−")


def setting(value: float) -> str:
    """A number that a person has chosen, as exactly as it was given ("0.0005", "0.1", "64")."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.6g}"


def counted(amount: int, one: str, many: str | None = None) -> str:
    """A count with its noun ("1 epoch", "1,797 images")."""
    return f"{amount:,}{SPACE}{one if amount == 1 else many or one + 's'}"


def percent(share: float, num_samples: int | None = None) -> str:
    """A share as a percentage with the decimals that `num_samples` can resolve; 100 % only where it is all of them."""
    if share in (0, 1):
        return f"{share * 100:.0f}{SPACE}%"
    decimals = 1 if num_samples is None else 0 if num_samples <= 100 else 1 if num_samples < 10_000 else 2
    while decimals <= 6 and 0 < share < 1 and round(share * 100, decimals) in (0.0, 100.0):
        decimals += 1
    if decimals > 6:
        return f"<0.000001{SPACE}%" if share < 0.5 else f">99.999999{SPACE}%"
    return f"{share * 100:.{decimals}f}{SPACE}%"


def percent_range(low: float, high: float, num_samples: int | None = None) -> str:
    """An interval of shares ("96.4–99.2 %")."""
    return f"{percent(low, num_samples).removesuffix(SPACE + '%')}–{percent(high, num_samples)}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points ("0.28 points")."""
    return f"{bare_points(difference)}{SPACE}points"


def bare_points(difference: float) -> str:
    """Percentage points without the unit (for table columns that name it)."""
    rounded = round(difference * 100, 2)
    return f"{0.0 if rounded == 0 else rounded:.2f}".replace("-", "−")


def rounded_up(bound: float) -> float:
    """An upper bound as the shortest share that it holds for when written in points: rounded up, never below it."""
    return math.ceil(round(bound * 10_000, 6)) / 10_000


def budget(share: float) -> str:
    """A share that a person has allowed, in points, as exactly as it was given ("0.5 points")."""
    return f"{setting(share * 100)}{SPACE}points"


def duration(seconds: float) -> str:
    """A time span ("0.42 s", "6.1 s", "3 min 20 s", "1 h 12 min")."""
    if seconds < 0.0995:
        return f"{significant(seconds * 1000, 2)}{SPACE}ms"
    if seconds < 9.95:
        return f"{significant(seconds, 2)}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s" if whole % 60 else f"{whole // 60}{SPACE}min"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{SPACE}h {minutes % 60}{SPACE}min" if minutes % 60 else f"{minutes // 60:,}{SPACE}h"


def milliseconds(value: float) -> str:
    """A latency in ms to three digits, without the unit (for table columns that name it)."""
    return significant(value, 3)


def factor(ratio: float, interval: tuple[float, float] | None = None) -> str:
    """A speedup ("4.2×", "0.95×", "31×"), with the digits of its interval where it has one."""
    return f"{significant(ratio, 2 if interval is None else _num_digits(*interval))}×"


def factor_range(low: float, high: float) -> str:
    """An interval of speedups ("3.9–4.5×")."""
    digits = _num_digits(low, high)
    return f"{significant(low, digits)}–{significant(high, digits)}×"


def _num_digits(low: float, high: float) -> int:
    """Three significant digits where two would not tell the ends of an interval apart, else two."""
    if not math.isfinite(high - low):
        return 2
    return 3 if high - low < 0.25 * 10 ** math.floor(math.log10(max(high, 1e-9))) else 2


def rate(samples_per_second: float) -> str:
    """A throughput ("4,210 samples/s")."""
    return f"{significant(samples_per_second, 3)}{SPACE}samples/s"


def size(num_bytes: int) -> str:
    """A size in binary units ("1.3 MiB")."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5:
            return f"{value:.0f}{SPACE}{unit}" if unit == "B" or value >= 99.5 else f"{value:.1f}{SPACE}{unit}"
        value /= 1024
    return f"{value:,.1f}{SPACE}TiB"


def date(moment: datetime) -> str:
    """A day and time, in words that mean the same everywhere ("21 November 2026, 02:57")."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}, {moment:%H:%M}"
