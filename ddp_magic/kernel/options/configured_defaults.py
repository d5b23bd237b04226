"""Defaults of the options of `%%ddp`, which `%config DDPMagics` and `ipython_config.py` set.

A line's own options win: a default that contradicts what the line names is left out. Only the magic
has them: what `launch` and `run` do does not depend on the notebook that calls them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from traitlets import HasTraits, TraitError, TraitType

from ddp_magic.errors import one_line
from ddp_magic.kernel.options.contradictions import NOT_WRITTEN
from ddp_magic.kernel.options.declaration import OPTIONS
from ddp_magic.kernel.options.option import Option, OptionError

_OPTIONS = tuple(option for option in OPTIONS if option.has_default)
_DEVICES = ("nproc_per_node", "gpus", "backend")  # a default of one is a reason to refuse another


class Default(TraitType):
    """The default of one option, checked by the option's own declaration."""

    def __init__(self, option: Option) -> None:
        off = f" {option.negation} turns it off for a cell." if option.negation else ""
        text = f"For %%ddp without {' or '.join(option.flags)}: "
        super().__init__(
            default_value=option.default,
            allow_none=True,
            help=text + option.help.replace("`", "") + off,
            config=True,
        )
        self._option = option

    def validate(self, _owner: HasTraits, value: object) -> Any:  # noqa: ANN401 -- of the option's type
        """Read a value.

        Raises:
            TraitError: The option cannot have it.
        """
        try:
            return self._option.value(value)
        except ValueError as error:
            problem = TraitError(f"DDPMagics.{self.name}: {error}; None for no default")
            raise one_line(problem) from None  # from a configuration file: without a traceback

    def from_string(self, text: str) -> object:
        """Read a value from a command line: `ipython --DDPMagics.quiet=True`."""
        words = {"None": None} if self._option.metavar else {"True": True, "False": False}
        return words.get(text, text)


# A class of traits for the magics' class; as a dict, because its names come from the declaration.
OptionDefaults: Any = type(HasTraits)(
    "OptionDefaults", (HasTraits,), {option.name: Default(option) for option in _OPTIONS}
)


def with_defaults(args: SimpleNamespace, defaults: object) -> SimpleNamespace:
    """Return the options of a line with the defaults for what it does not name.

    Args:
        args: The line's options, from `parse_line`.
        defaults: An object with an attribute for each option that has a default.
    """
    values = dict(vars(args))
    for option in _OPTIONS:
        value = getattr(defaults, option.name)
        if value in (None, option.default) or option.name in args.given:
            continue
        if not _contradicts(args, option.name, value):
            values[option.name] = value
    return SimpleNamespace(**values)


def _contradicts(args: SimpleNamespace, name: str, value: Any) -> bool:  # noqa: ANN401 -- as above
    """Return whether a default is not possible beside what the line names."""
    if args.write is not None and (name in NOT_WRITTEN or str(value).startswith("free")):
        return True
    match name:
        case "backend" | "timeout":
            on_cpu = name == "backend" and args.gpus == "none" and "nccl" in value
            return args.no_init or on_cpu
        case "max_restarts":
            return args.session is not None
        case "nproc_per_node" if args.gpus == "none":
            return bool(value == "gpu")
        case "nproc_per_node":  # a rank for each GPU that the line names
            return args.gpus not in (None, "free")
        case _:
            return False


def in_force(args: SimpleNamespace, problem: OptionError) -> str:
    """Return which defaults may be a reason of a problem, in words; empty if none is."""
    names = _DEVICES if problem.name in _DEVICES else (problem.name,)
    found = [
        f"{option.name} = {getattr(args, option.name)!r}"
        for option in _OPTIONS
        if option.name in names
        and option.name not in args.given
        and getattr(args, option.name) not in (None, option.default)
    ]
    return f" (%config DDPMagics has {', '.join(found)})" if found else ""
