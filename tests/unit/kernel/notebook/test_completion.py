"""What TAB offers on a line."""

from __future__ import annotations

import pytest

from ddp_magic.kernel.notebook.completion import complete, complete_name

SOURCES = {
    "session": lambda: ["lab", "big"],
    "run": lambda: ["1127-2", "1127-1"],
    "name": lambda: ["images", "labels", "_hidden"],
    "bound": lambda: ["layers"],
}


@pytest.mark.parametrize(
    ("line", "fragment", "found"),
    [
        ("%%ddp --n", "--n", ["--nproc-per-node", "--no-init", "--nnodes", "--no-raise-error"]),
        ("%%ddp --no-q", "--no-q", ["--no-quiet"]),
        ("%%ddp --rai", "--rai", ["--raise-error"]),
        ("  %%ddp -n 2 --ti", "--ti", ["--timeout", "--time-limit"]),
        ("%%ddp -n ", "", ["gpu", "cpu", "auto"]),
        ("%%ddp -n g", "g", ["gpu"]),
        ("%%ddp --nproc g", "g", ["gpu"]),
        ("%%ddp --nproc-per-node=g", "g", ["gpu"]),
        ("%%ddp -g n", "n", ["none"]),
        ("%%ddp -g f", "f", ["free:1", "free:2", "free:4", "free:8"]),
        ("%%ddp --gpus=free:2", "free:2", ["free:2"]),
        ("%%ddp --backend ", "", ["gloo", "nccl", "cpu:gloo,cuda:nccl"]),
        ("%%ddp -s ", "", ["lab", "big"]),
        ("%%ddp --capture ", "", ["none", "images", "labels"]),
        ("%%ddp --capture images,", "", ["labels"]),
        ("%%ddp --capture _", "_", ["_hidden"]),
        ("%%ddp --pull l", "l", ["labels", "layers", "loss"]),
        ("%%ddp --capture l", "l", ["labels"]),
        ("%%ddp --pull a,loss@", "", ["all"]),
        ("%%ddp --seed ", "", []),
        ("%%ddp x", "x", []),
        ("%ddp_stop ", "", ["lab", "big", "--all", "-h", "--help"]),
        ("%ddp_stop l", "l", ["lab"]),
        ("%ddp_stop --a", "--a", ["--all"]),
        ("%ddp_status 1127-1", "1127-1", ["1127-1"]),
        ("%ddp_show 1127-1", "1127-1", ["1127-1"]),
        ("%ddp_logs --r", "--r", ["--rank"]),
    ],
)
def test_what_is_offered(line: str, fragment: str, found: list[str]) -> None:
    assert complete(line, SOURCES, "loss = 1\nlast == 2") == (fragment, found)


def test_a_dash_offers_all_options() -> None:
    fragment, found = complete("%%ddp -", SOURCES) or ("", [])
    assert fragment == "-"
    assert {"-n", "--nproc-per-node", "--session", "--pull", "--help"} <= set(found)
    assert "--" not in found


@pytest.mark.parametrize(
    "line",
    [
        *("", "images", "%%ddp", "%%time -", "x = '%%ddp -", "%%ddp -n 2 -- --", "%%ddpx -"),
        *("%%ddp --trace ", "%%ddp --trace=out/t", "%%ddp --write ", "%%ddp --write=tr"),
    ],
)
def test_other_lines_are_left_to_ipython(line: str) -> None:
    assert complete(line, SOURCES) is None


@pytest.mark.parametrize(
    ("above", "before", "fragment", "found"),
    [
        ("%%ddp", "wor", "wor", ["world_size"]),
        (
            "# Train.\n\n%%ddp -n 2\nx = 1",
            "x = f(DistributedS",
            "DistributedS",
            ["DistributedSampler"],
        ),
        ("%%ddp", "x.wor", "", []),
        ("%%ddp", "x = ", "", []),
        ("%%ddp", "nothing", "nothing", []),
        ("%%ddp -n 2 -s lab", "mod", "mod", ["model"]),
        ("%%ddp --session=lab", "mod", "mod", ["model"]),
        ("%%ddp -slab", "mod", "mod", ["model"]),
        ("%%ddp -s other", "mod", "mod", []),
        ("%%ddp", "mod", "mod", []),
        ("%%time", "wor", "", []),
        ("x = 1\n%%ddp", "wor", "", []),
        ("", "wor", "", []),
    ],
)
def test_the_names_of_a_rank_in_a_cell(
    above: str, before: str, fragment: str, found: list[str]
) -> None:
    """The notebook does not have them, so IPython does not offer them."""
    kept = {"lab": {"model"}}
    assert complete_name(above.split("\n"), before, lambda name: kept.get(name, set())) == (
        fragment,
        found,
    )
