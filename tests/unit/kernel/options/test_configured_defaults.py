"""What `%config DDPMagics` sets, and what a line makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config, Configurable

from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.notebook.magics import DDPMagics
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.configured_defaults import OptionDefaults, in_force, with_defaults
from ddp_magic.kernel.options.contradictions import NOT_WRITTEN
from ddp_magic.kernel.options.declaration import OPTIONS
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import resolve
from ddp_magic.kernel.session import Session
from ddp_magic.kernel.values.capture import Notebook
from tests.unit.fakes import FakeGroup

COMMON = {
    "nproc_per_node": 4,
    "gpus": "0,1",
    "show": "0,2-3",
    "quiet": True,
    "seed": 0,
    "backend": "gloo",
    "timeout": 30,
    "time_limit": "60",
    "max_restarts": 2,
    "engine": "slurm",
    "nnodes": 2,
    "engine_args": "-p gpu",
    "profile": True,
    "cold": True,
    "check": True,
    "no_raise_error": True,
}


class Settings(Configurable, OptionDefaults):
    """What DDPMagics is to `%config`, without a shell."""


def _line(line: str, **defaults: object) -> dict[str, Any]:
    """Return the options that differ from those of a line without any."""
    args = vars(with_defaults(parse_line("%%ddp", line), OptionDefaults(**defaults)))
    return {o.name: args[o.name] for o in OPTIONS if args[o.name] != o.default}


def _resolve(line: str, **defaults: object) -> Options:
    return resolve(with_defaults(parse_line("%%ddp", line), OptionDefaults(**defaults)), [])


def test_the_common_options_have_defaults() -> None:
    """Those of one cell have none: a session, what is captured and pulled, a file, arguments."""
    names = {option.name for option in OPTIONS if option.has_default}
    assert names == COMMON.keys()
    assert names < set(DDPMagics.class_trait_names(config=True))


def test_a_default_is_for_lines_that_do_not_name_the_option() -> None:
    assert _line("--capture a", **COMMON) == {
        **COMMON,
        "show": frozenset({0, 2, 3}),
        "time_limit": 60.0,
        "capture": frozenset("a"),
    }


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("-n 2", "nproc_per_node", 2),
        ("-g none", "gpus", "none"),
        ("--show 1", "show", frozenset({1})),
        ("--no-quiet", "quiet", False),
        ("--seed 7", "seed", 7),
        ("--backend nccl", "backend", "nccl"),
        ("--timeout 5", "timeout", 5.0),
        ("--time-limit 5", "time_limit", 5.0),
        ("--max-restarts 0", "max_restarts", 0),
        ("--no-profile", "profile", False),
        ("--no-cold", "cold", False),
        ("--no-check", "check", False),
        ("--raise-error", "no_raise_error", False),
    ],
)
def test_the_lines_own_option_wins(line: str, name: str, value: object) -> None:
    args = with_defaults(parse_line("%%ddp", line), OptionDefaults(**COMMON))
    assert getattr(args, name) == value


def test_a_script_ignores_the_defaults_that_it_cannot_have() -> None:
    """`--write` is not refused for what its line does not name."""
    settings = OptionDefaults(**{**COMMON, "gpus": "free:2", "cold": True})
    args = with_defaults(parse_line("%%ddp", "--write train.py"), settings)
    plain = parse_line("%%ddp", "")
    for name in NOT_WRITTEN | {"gpus"}:
        assert getattr(args, name) == getattr(plain, name), name
    assert args.nproc_per_node == COMMON["nproc_per_node"]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("nproc_per_node", 0, "invalid rank count 0: use 1, 2, ..., gpu, cpu or auto"),
        ("nproc_per_node", True, "invalid rank count True"),
        ("gpus", "free:0", "invalid GPU list 'free:0': use numbers such as 0,2, UUIDs, free:2"),
        ("show", "3-1", "invalid list of ranks '3-1': use ranks such as 0,2-3"),
        ("show", "", "invalid list of ranks '': use ranks such as 0,2-3; None for no default"),
        ("quiet", "yes", "invalid flag 'yes': use True or False"),
        ("quiet", 1, "invalid flag 1: use True or False"),
        ("seed", 1.5, "invalid seed 1.5: use an integer"),
        ("backend", "", "invalid backend '': use gloo, nccl"),
        ("timeout", -1, "invalid number of seconds -1: use a number above 0"),
        ("max_restarts", -1, "invalid number of restarts -1: use 0, 1, 2"),
    ],
)
def test_a_wrong_value_is_refused_and_the_old_one_stays(
    name: str, value: object, problem: str
) -> None:
    """By `%config`, which shows the message of the error, and by a configuration file."""
    settings = Settings()
    settings.update_config(Config(Settings={name: COMMON[name]}))
    before = getattr(settings, name)
    with pytest.raises(TraitError) as caught:
        settings.update_config(Config(Settings={name: value}))
    assert str(caught.value).startswith(f"DDPMagics.{name}: {problem}")
    assert getattr(settings, name) == before
    settings.update_config(Config(Settings={"seed": 3}))
    assert settings.seed == 3, "the next one is not refused with it"
    with pytest.raises(TraitError) as caught:
        Settings(config=Config(Settings={name: value}))
    assert len(caught.value._render_traceback_()) == 1  # what %load_ext shows


def test_none_stands_for_no_default() -> None:
    assert _line("", **dict.fromkeys(COMMON)) == {}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("quiet", "True", True),
        ("quiet", "False", False),
        ("nproc_per_node", "4", 4),
        ("time_limit", "1.5", 1.5),
        ("gpus", "none", "none"),
        ("seed", "None", None),
    ],
)
def test_text_of_a_command_line(name: str, text: str, value: object) -> None:
    """As in `ipython --DDPMagics.quiet=True`."""
    trait = Settings.class_traits()[name]
    settings = Settings(**{name: trait.from_string(text)})
    assert getattr(settings, name) == value


def test_the_help_of_each() -> None:
    """From its declaration, with what turns off a flag."""
    text = " ".join(Settings.class_get_help(Settings()).split())
    for option in OPTIONS:
        if option.has_default:
            assert option.help.replace("`", "").split(".")[0].split("/")[0] in text
    assert "For %%ddp without -n or --nproc-per-node: Number of ranks" in text
    assert "--no-quiet turns it off for a cell. Current: False" in text
    assert "--raise-error turns it off for a cell" in text


# --- beside what the line names ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "defaults", "found"),
    [
        ("--no-init", {"backend": "gloo", "timeout": 3, "quiet": True}, {"quiet": True}),
        ("-s lab", {"max_restarts": 2}, {}),
        ("-g none", {"nproc_per_node": 4, "backend": "gloo"}, {"nproc_per_node", "backend"}),
        ("-g none", {"nproc_per_node": "gpu", "backend": "cpu:gloo,cuda:nccl"}, {}),
        ("-g 0,1", {"nproc_per_node": 4}, {}),
        ("-g free:2", {"nproc_per_node": 4}, {}),
        ("-g free", {"nproc_per_node": 4}, {"nproc_per_node"}),
    ],
)
def test_a_default_that_contradicts_the_line_is_left_out(
    line: str, defaults: dict[str, Any], found: set[str]
) -> None:
    given = parse_line("%%ddp", line).given
    assert _line(line, **defaults).keys() - given == set(found)


def test_ranks_of_a_default_that_the_run_does_not_have_are_ignored() -> None:
    assert _resolve("-n 2", show="0,5").show == {0}
    assert _resolve("-n 2", show="5").show is None
    with pytest.raises(OptionError, match="invalid rank 5"):
        _resolve("-n 2 --show 5", show="0")


def test_a_session_keeps_its_ranks_whatever_the_defaults_are() -> None:
    controller = Controller(Notebook({}))
    options = Options(nproc=2, session="lab")
    controller.sessions.add(Session(options, FakeGroup(Path("unused"))))  # type: ignore[arg-type]
    joined = controller.join(with_defaults(parse_line("%%ddp", "-s lab"), OptionDefaults(**COMMON)))
    assert joined is not None
    assert (joined.nproc, joined.backend, joined.max_restarts) == (2, None, 0)
    assert (joined.seed, joined.time_limit_s, joined.quiet, joined.check) == (0, 60.0, True, True)
    assert joined.show == {0}


def test_a_problem_names_the_defaults_that_may_be_its_reason() -> None:
    args = with_defaults(
        parse_line("%%ddp", "-n 2"), OptionDefaults(gpus="none", seed=1, backend="nccl")
    )
    with pytest.raises(OptionError) as caught:
        resolve(args, [])
    assert in_force(args, caught.value) == (
        " (%config DDPMagics has gpus = 'none', backend = 'nccl')"
    )
    args = with_defaults(parse_line("%%ddp", "--pull a@9"), OptionDefaults(seed=1))
    with pytest.raises(OptionError) as caught:
        resolve(args, [])
    assert in_force(args, caught.value) == ""
