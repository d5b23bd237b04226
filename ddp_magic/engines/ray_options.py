"""What each node of a Ray cluster is asked for, in the words of `ray start`. Pure."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _is_amount(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return 0 <= number < math.inf


def _amount(text: str) -> float:
    """Read how much of something a node must have; for the rest Ray would wait for ever."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not _is_amount(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what each node is asked for, in the words of `ray start`."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--address", default="auto")
    parser.add_argument("--num-cpus", type=_amount)
    parser.add_argument("--num-gpus", type=_amount, default=0.0)
    parser.add_argument("--resources", type=json.loads, default={})
    return parser.parse_args(arguments)


def problem_of(arguments: Sequence[str]) -> str:
    """Return which of these arguments cannot be used, and why; empty if all can."""
    try:
        asked = parse(arguments)
    except ValueError as error:
        return f"{error}: use --address, and for each node --num-cpus, --num-gpus, --resources"
    if not isinstance(asked.resources, dict):
        return "--resources is not a JSON object, such as '{\"a\": 1}'"
    for name, amount in asked.resources.items():
        if not _is_amount(amount):
            return f"--resources: {name}: {amount!r} is not a number from 0 on"
    return ""
