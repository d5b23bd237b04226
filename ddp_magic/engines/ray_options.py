"""What each node of a Ray cluster is asked for, in the words of `ray start`. Pure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what each node is asked for, in the words of `ray start`."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--address", default="auto")
    parser.add_argument("--num-cpus", type=float)
    parser.add_argument("--num-gpus", type=float, default=0.0)
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
    return ""
