"""Tables in files: rows of named columns, of CSV or JSON."""

from __future__ import annotations

import collections
import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from fljax import bounds
from fljax.runtime import reading


def rows(
    path: pathlib.Path, columns: Sequence[str], what: str = "device"
) -> list[dict[str, Any]]:
    """Reads rows of equal, known columns.

    Args:
      path: CSV with a line of column names, or JSON, a list of objects.
      columns: that there may be.
      what: a row is of.

    Returns:
      The rows, at least one, column -> value; of CSV all are texts.

    Raises:
      ValueError: the file is missing or not as described.
    """
    found = reading.read_json(path) if path.suffix.lower() == ".json" else _csv(path)
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise ValueError(
            f"{path}: expected a list of {what}s, one row each, got "
            f"{type(found).__name__ if found else 'none'}"
        )
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict) or row.keys() != found[0].keys():
            got = list(row) if isinstance(row, dict) else row
            raise ValueError(
                f"{path}: expected the columns {bounds.shown(list(found[0]))} of "
                f"{what} 1 for {what} {number}, got {bounds.shown(got)}"
            )
    if unknown := [name for name in found[0] if name not in columns]:
        raise ValueError(
            f"{path}: expected columns among {', '.join(columns)}, got "
            f"{bounds.shown(unknown[0])}"
        )
    return found


def _csv(path: pathlib.Path) -> list[dict[str, Any]]:
    reading.check(str(path), path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets mark
            reader = csv.DictReader(file, skipinitialspace=True)
            names = list(reader.fieldnames or ())
            counts = collections.Counter(names).most_common(1)
            if counts and counts[0][1] > 1:
                raise ValueError(f"the column {bounds.shown(counts[0][0])} twice")
            return list(reader)
    except (ValueError, csv.Error) as error:  # also what is not UTF-8 raises
        raise ValueError(
            f"{path}: expected CSV or JSON, got: {reading.gist(error)}"
        ) from error


def number(value: Any) -> float:
    """Reads a number of JSON or the text of one; NaN: it is none."""
    try:
        return (
            float(value)
            if isinstance(value, str) or reading.is_number(value)
            else math.nan
        )
    except ValueError:
        return math.nan
