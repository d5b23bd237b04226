"""What the magics' lines and the keywords of `launch` and `run` mean, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ddp_magic.errors import DDPMagicError, one_line
from ddp_magic.kernel.options.arguments import parse_keywords, parse_line
from ddp_magic.kernel.options.declaration import OPTIONS
from ddp_magic.kernel.options.line_magic_options import LOGS_OPTIONS, STOP_OPTIONS
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.values.pull import Pull


def _line(line: str) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    found = vars(parse_line("%%ddp", line))
    return {o.name: found[o.name] for o in OPTIONS if found[o.name] != o.default}


def _keywords(**given: object) -> dict[str, Any]:
    found = vars(parse_keywords(given))
    return {o.name: found[o.name] for o in OPTIONS if found[o.name] != o.default}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", {}),
        ("-n 2", {"nproc_per_node": 2}),
        ("-n2", {"nproc_per_node": 2}),
        ("-n=2", {"nproc_per_node": 2}),
        ("-n '2'", {"nproc_per_node": 2}),
        ("--nproc-per-node=2", {"nproc_per_node": 2}),
        ("--nproc 2", {"nproc_per_node": 2}),
        ("-n 2 -n 3", {"nproc_per_node": 3}),
        ("-nauto", {"nproc_per_node": "auto"}),
        ("-g0,2", {"gpus": "0,2"}),
        ("-g 'GPU-aa, 1'", {"gpus": "GPU-aa,1"}),
        ("-g none", {"gpus": "none"}),
        ("-g free", {"gpus": "free"}),
        ("-gfree:2", {"gpus": "free:2"}),
        ("-slab", {"session": "lab"}),
        ("--show 0,2-3", {"show": frozenset({0, 2, 3})}),
        ("--capture a,b", {"capture": frozenset("ab")}),
        ("--capture none", {"capture": frozenset()}),
        ("--pull a,b@all", {"pull": (Pull("a", 0), Pull("b", None))}),
        ("--seed -1 --timeout .5", {"seed": -1, "timeout": 0.5}),
        ("--cold --no-init", {"cold": True, "no_init": True}),
        ("-h", {"help": True}),
        ("-q", {"quiet": True}),
        ("-q --no-quiet", {}),
        ("--no-quiet -q", {"quiet": True}),
        ("--no-raise-error --raise-error", {}),
        ("--no-check --no-profile --no-cold", {}),
        ("-n 2 -- --lr 0.1 'two words' -n", {"nproc_per_node": 2}),
    ],
)
def test_lines(line: str, found: dict[str, Any]) -> None:
    values = _line(line)
    values.pop("argv", None)
    assert values == found


def test_what_follows_two_dashes_is_the_cells() -> None:
    assert _line("-n 2 -- --lr 0.1 'two words' -n")["argv"] == ("--lr", "0.1", "two words", "-n")


RANK_COUNT = "use 1, 2, ..., gpu, cpu or auto"
GPUS = "use numbers such as 0,2, UUIDs, free:2 for idle ones, or none"
SECONDS = "use a number above 0, such as 30 or 0.5, and not above 1e9"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-n", f"%%ddp -n: missing rank count: {RANK_COUNT}"),
        ("-n --cold", f"%%ddp -n: missing rank count: {RANK_COUNT}"),
        ("-n x", f"%%ddp -n: invalid rank count 'x': {RANK_COUNT}"),
        ("-n 0", f"%%ddp -n: invalid rank count '0': {RANK_COUNT}"),
        ("-n -3", f"%%ddp -n: invalid rank count '-3': {RANK_COUNT}"),
        ("--nproc gpu=2", f"%%ddp --nproc-per-node: invalid rank count 'gpu=2': {RANK_COUNT}"),
        ("--timeout -1", f"%%ddp --timeout: invalid number of seconds '-1': {SECONDS}"),
        ("--time-limit inf", f"%%ddp --time-limit: invalid number of seconds 'inf': {SECONDS}"),
        ("--timeout", f"%%ddp --timeout: missing number of seconds: {SECONDS}"),
        ("--timeout 1e20", f"%%ddp --timeout: invalid number of seconds '1e20': {SECONDS}"),
        ("-g x", f"%%ddp -g: invalid GPU list 'x': {GPUS}"),
        ("-g free:0", f"%%ddp -g: invalid GPU list 'free:0': {GPUS}"),
        ("-g free:", f"%%ddp -g: invalid GPU list 'free:': {GPUS}"),
        ("-g free:-1", f"%%ddp -g: invalid GPU list 'free:-1': {GPUS}"),
        ("-g free:two", f"%%ddp -g: invalid GPU list 'free:two': {GPUS}"),
        ("-g free:2,0", f"%%ddp -g: invalid GPU list 'free:2,0': {GPUS}"),
        ("-g 0,free:1", f"%%ddp -g: invalid GPU list '0,free:1': {GPUS}"),
        ("--show 3-1", "%%ddp --show: invalid list of ranks '3-1': use ranks such as 0,2-3"),
        ("--show 0-9999999999", "%%ddp --show: invalid list of ranks '0-9999999999'"),
        ("-o 2x", "%%ddp -o: invalid name '2x': use a Python name, such as run"),
        ("-s 'a b'", "%%ddp -s: invalid session name 'a b': use a Python name, such as lab"),
        ("--capture a,2", "%%ddp --capture: invalid list of names 'a,2': use names such as a,b"),
        ("--pull 3a", "%%ddp --pull: invalid name '3a': use names such as loss, loss@all"),
        ("--trace", "%%ddp --trace: missing file name: use a path such as trace.json"),
        ("--trace ''", "%%ddp --trace: invalid file name '': use a path such as trace.json"),
        ("--capture a, b", "%%ddp --capture: unexpected space in 'a, b': write --capture a,b"),
        ("--pull a b@all -q", "%%ddp --pull: unexpected space in 'a b@all': write --pull a,b@all"),
        ("--pull=a, b", "%%ddp --pull: unexpected space in 'a, b': write --pull a,b"),
        ("--show 0, 2-3", "%%ddp --show: unexpected space in '0, 2-3': write --show 0,2-3"),
        ("-g 0 1", "%%ddp -g: unexpected space in '0 1': write -g 0,1"),
        ("--show 0, x", "%%ddp --show: invalid list of ranks '0,': use ranks such as 0,2-3"),
        ("--pull a, -q", "%%ddp --pull: invalid name '': use names such as"),
        ("--pull a # b", "%%ddp: unexpected argument '#': put comments below this line"),
        (
            "--trace my file.json",
            "%%ddp --trace: unexpected space in 'my file.json': write --trace \"my file.json\"",
        ),
        (
            "--engine-args -p gpu",
            "%%ddp --engine-args: unexpected space in '-p gpu': write --engine-args \"-p gpu\"",
        ),
        ("--backend gloo nccl", "%%ddp: unexpected argument 'nccl': put arguments of the cell"),
        ("-n 2 4", "%%ddp: unexpected argument '4': put arguments of the cell after --"),
        ("-qn 2", "%%ddp: unrecognized option -qn: write -q -n"),
        ("-qx", "%%ddp: unrecognized option -qx: %%ddp --help lists the options"),
        ("--target 0", "%%ddp: unrecognized option --target: %%ddp --help lists the options; put"),
        ("--args 0", "%%ddp: unrecognized option --args: put arguments of the cell after --"),
        ("--cpu", "%%ddp: unsupported option --cpu: -g none runs the cell on the CPU"),
        ("-n 1 # it's", "%%ddp: missing closing quote in: -n 1 # it's; put comments below this"),
        ("--profile=1", "%%ddp --profile: unexpected value '1': this option takes none"),
        ("--seed 1.5", "%%ddp --seed: invalid seed '1.5': use an integer from -2**63 to 2**64"),
        ("--cold=1", "%%ddp --cold: unexpected value '1': this option takes none"),
        (
            "\u2014n 2",
            "%%ddp: unexpected argument '\u2014n': it starts with a dash instead of a hyphen",
        ),
        (
            "\u2013\u2013seed 2",
            "%%ddp: unexpected argument '\u2013\u2013seed': it starts with a dash",
        ),
        ("2", "%%ddp: unexpected argument '2': did you mean -n 2?"),
        ("train.py", "%%ddp: unexpected argument 'train.py': put arguments of the cell after --"),
        ("-n 1 # one", "%%ddp: unexpected argument '#': put comments below this line"),
        ("-n 1 -- 'open", "%%ddp: missing closing quote in: -n 1 -- 'open"),
        ("-n 1 \\", "%%ddp: a backslash does not continue the line: write all options in one line"),
        ("--no-quiet=1", "%%ddp: unrecognized option --no-quiet: did you mean --quiet?"),
        ("--no-seed", "%%ddp: unrecognized option --no-seed: "),
        ("''", "%%ddp: unexpected argument ''"),
        ("--no", "%%ddp: ambiguous option --no: use --no-init or --no-raise-error"),
        ("--frobnicate", "%%ddp: unrecognized option --frobnicate: %%ddp --help lists the options"),
        ("-x", "%%ddp: unrecognized option -x: %%ddp --help lists the options"),
        ("-r 3", "%%ddp: unsupported option -r of torchrun: every rank's text is shown"),
        ("--lr 0.1", "%%ddp: unrecognized option --lr: %%ddp --help lists the options; put arg"),
        ("--=3", "%%ddp: unrecognized option --=3: %%ddp --help"),
        ("--version", "%%ddp: unsupported option --version: %pip show ddp-magic shows the version"),
        ("--nnodes=0", "%%ddp --nnodes: invalid node count '0': use 1, 2, ..., or the fewest and"),
        ("-N 2:1", "%%ddp -N: invalid node count '2:1': use 1, 2, ..."),
        ("-N 0:1", "%%ddp -N: invalid node count '0:1': use 1, 2, ..."),
        ("-N :2", "%%ddp -N: invalid node count ':2': use 1, 2, ..."),
        ("-N 1:", "%%ddp -N: invalid node count '1:': use 1, 2, ..."),
        ("-N 1:2:3", "%%ddp -N: invalid node count '1:2:3': use 1, 2, ..."),
        ("-N 1-2", "%%ddp -N: invalid node count '1-2': use 1, 2, ..., or the fewest and"),
        ("--rdzv_backend c10d", "%%ddp: unsupported option --rdzv_backend of torchrun: %%ddp does"),
        ("--standalone", "%%ddp: unsupported option --standalone of torchrun: %%ddp does this by"),
        ("-m train", "%%ddp: unsupported option -m of torchrun: %%ddp runs the cell, so import"),
        ("--max-restarts -1", "%%ddp --max-restarts: invalid number of restarts '-1': use 0, 1, 2"),
        ("--max-restarts", "%%ddp --max-restarts: missing number of restarts: use 0, 1, 2, ..."),
        ("--max_restarts 3", "%%ddp: unrecognized option --max_restarts: did you mean --max-r"),
        ("--retries 3", "%%ddp: unrecognized option --retries: did you mean --max-restarts?"),
    ],
)
def test_wrong_lines(line: str, message: str) -> None:
    """One line names the option and the value, and says what to use."""
    with pytest.raises(ValueError, match="%%ddp") as caught:
        parse_line("%%ddp", line)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("--nprocs", "--nproc-per-node"),
        ("-np", "--nproc-per-node"),
        ("-nproc", "--nproc-per-node"),
        ("--nproc_per_node=2", "--nproc-per-node"),
        ("--num_processes", "--nproc-per-node"),
        ("--devices", "--gpus"),
        ("--sesion", "--session"),
        ("-session", "--session"),
        ("--time_limit", "--time-limit"),
        ("--output", "--out"),
        ("--raise-errors", "--no-raise-error"),
        ("-help", "--help"),
    ],
)
def test_a_near_miss_gets_a_suggestion(word: str, option: str) -> None:
    with pytest.raises(ValueError, match="unrecognized option") as caught:
        parse_line("%%ddp", f"{word} 2")
    name = word.partition("=")[0]
    assert str(caught.value) == f"%%ddp: unrecognized option {name}: did you mean {option}?"


def test_what_a_line_names_is_known() -> None:
    """Also where it is the default; `%config DDPMagics` may have another one."""
    line = "-n2 --gpus=none --no-quiet --raise-error --time-l 3 -- a"
    given = {"nproc_per_node", "gpus", "quiet", "no_raise_error", "time_limit", "argv"}
    assert parse_line("%%ddp", line).given == given
    assert parse_line("%%ddp", "").given == frozenset()
    assert parse_keywords({"nproc_per_node": 2, "seed": None, "cold": False}).given == {
        "nproc_per_node",
        "cold",
    }


def test_line_magics() -> None:
    """They are parsed by the same rules."""
    assert vars(parse_line("%ddp_stop", "lab", STOP_OPTIONS))["session"] == "lab"
    assert vars(parse_line("%ddp_stop", "--al", STOP_OPTIONS))["all"]
    for line, message in {
        "--alll": "%ddp_stop: unrecognized option --alll: did you mean --all?",
        "a b": "%ddp_stop: unexpected argument 'b': %ddp_stop --help shows the usage",
        "''": "%ddp_stop: invalid session '': use the name of a session, or the id of a run",
    }.items():
        with pytest.raises(ValueError, match="%ddp_stop") as caught:
            parse_line("%ddp_stop", line, STOP_OPTIONS)
        assert str(caught.value) == message


def test_a_line_magic_has_no_arguments_of_a_cell() -> None:
    """Also one that has an `-n` of its own."""
    with pytest.raises(ValueError, match="%ddp_logs") as caught:
        parse_line("%ddp_logs", "a b", LOGS_OPTIONS)
    assert str(caught.value) == (
        "%ddp_logs: unexpected argument 'b': %ddp_logs --help shows the usage"
    )


def test_keywords_are_as_the_line() -> None:
    """Python's own types, numpy's numbers and the line's text are all understood."""
    assert _keywords(nproc_per_node=np.int64(3), gpus=[0, 2], show=range(2)) == {
        "nproc_per_node": 3,
        "gpus": "0,2",
        "show": frozenset({0, 1}),
    }
    assert _keywords(nproc_per_node="3", timeout="60", show="0-1", pull=["a", "b@all"]) == {
        "nproc_per_node": 3,
        "timeout": 60.0,
        "show": frozenset({0, 1}),
        "pull": (Pull("a", 0), Pull("b", None)),
    }
    assert _keywords(capture=[], argv=["--lr", "1"], cold=True) == {
        "capture": frozenset(),
        "argv": ("--lr", "1"),
        "cold": True,
    }
    assert _keywords(nproc_per_node=None, pull=None, cold=None) == {}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        *[
            ("nproc_per_node", value, f"invalid rank count {value!r}: {RANK_COUNT}")
            for value in (0, -3, 1.5, True, "many", "0", "", [2])
        ],
        *[
            ("time_limit", value, f"invalid number of seconds {value!r}: {SECONDS}")
            for value in (0, -1, "x", True, float("nan"), float("inf"), [1])
        ],
        *[("seed", value, f"invalid seed {value!r}: use an") for value in (1.5, "x", True, 2**64)],
        *[("show", value, f"invalid list of ranks {value!r}") for value in ([-1], [0.5], 2, "a")],
        *[("gpus", value, f"invalid GPU list {value!r}") for value in (0, [0.5], "x", [])],
        *[("capture", value, f"invalid list of names {value!r}") for value in (5, ["a b"], "a b")],
        *[("pull", value, f"invalid list of names {value!r}") for value in (5, [5])],
        ("pull", "a@b", "invalid rank 'b' in 'a@b': use a number or all after @"),
        ("session", 5, "invalid session name 5: use a Python name, such as lab"),
        ("backend", 5, "invalid backend 5: use gloo, nccl, or one for each device"),
        ("no_init", "yes", "invalid flag 'yes': use True or False"),
        *[("argv", value, f"invalid arguments {value!r}: use a") for value in ("--lr 1", ["x", 1])],
    ],
)
def test_wrong_values_of_keywords(name: str, value: object, problem: str) -> None:
    """The same words as on the line, with the keyword in front."""
    with pytest.raises(OptionError) as caught:
        parse_keywords({name: value})
    assert str(caught.value).startswith(f"{name}: {problem}")


def test_a_large_value_is_shown_in_one_line() -> None:
    with pytest.raises(OptionError) as caught:
        parse_keywords({"timeout": np.zeros((90, 90))})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("nprocs", "did you mean nproc_per_node?"),
        ("n", "did you mean nproc_per_node?"),
        ("ranks", "did you mean nproc_per_node?"),
        ("timelimit", "did you mean time_limit?"),
        ("raise_error", "did you mean no_raise_error?"),
        ("out", "launch and run return the Run"),
        ("frobnicate", "use one of nproc_per_node, gpus, session"),
    ],
)
def test_unknown_keywords(name: str, instead: str) -> None:
    with pytest.raises(TypeError) as caught:
        parse_keywords({name: 2})
    assert str(caught.value).startswith(f"unrecognized option {name}: {instead}")


def test_an_option_that_is_refused_is_shown_in_one_line() -> None:
    """It is still of Python's own class."""
    error = one_line(ValueError("seed: invalid seed 'x'"))
    assert isinstance(error, DDPMagicError)
    assert isinstance(error, ValueError)
    assert error._render_traceback_() == ["ValueError: seed: invalid seed 'x'"]
