"""Which arguments of srun are refused before anything starts, in any spelling that srun knows."""

from __future__ import annotations

import pytest

from ddp_magic.engines.slurm_options import problem_of


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("-n 4", "-n"), ("-n4", "-n"), ("--ntasks=4", "--ntasks"), ("--ntasks 4", "--ntasks"),
        ("-N2", "-N"), ("-N 1-2", "-N"), ("--nodes", "--nodes"), ("--nod=2", "--nod"),
        ("--ntasks-per-node=2", "--ntasks-per-node"),
        ("-o x", "-o"), ("--output=x", "--output"), ("--out=x", "--out"), ("-e none", "-e"),
        ("--err=x", "--err"), ("-i none", "-i"), ("--input=all", "--input"), ("--pty", "--pty"),
        ("-u", "-u"), ("-lu", "-u"), ("-vXu", "-u"), ("--unbuf", "--unbuf"), ("-Q", "-Q"),
        ("--quiet", "--quiet"), ("-h", "-h"), ("-vh", "-h"), ("--help", "--help"),
        ("--hel", "--hel"), ("-V", "-V"), ("--version", "--version"), ("--usage", "--usage"),
        ("--test-only", "--test-only"), ("--test", "--test"), ("--multi-prog", "--multi-prog"),
        ("--bcast=/tmp/x", "--bcast"), ("--interactive", "--interactive"), ("-M x", "-M"),
        ("--clusters=x", "--clusters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "-p gpu", "--partition gpu", "-l", "-t 30"])
def test_what_would_break_a_run(before: str, words: str, name: str) -> None:
    """It would tear the streams, print something and end, or start something else."""
    problem = problem_of(f"{before} {words}".split())
    assert problem.startswith(f"{name} cannot be used: "), problem


@pytest.mark.parametrize(
    "words",
    [
        "", "-p gpu -t 30", "-pgpu", "--nodelist=n1,n2", "-w n1,n2", "-l", "-lv", "-vvv", "-X",
        "--network=x -A a", "-A -n", "-J output", "--job-name output", "-b now+1hour", "-k", "-K1",
        "--no-kill", "-W 5", "--wait=5", "--time 30 -p gpu", "--mem=8G", "--gres=gpu:4", "-G4",
        "-c 8", "--exclusive", "-x n3", "--exclude=n3", "-d afterok:7", "-I10", "-D /tmp",
        "-B 2:4:1", "--quit-on-interrupt", "--nodefile=x", "--ntasks-per-core=1", "--bb=x", "-E",
        "-q high",
    ],
)  # fmt: skip
def test_all_else_is_sruns_affair(words: str) -> None:
    assert problem_of(words.split()) == ""


@pytest.mark.parametrize(
    "words", ["gpu", "-p gpu gpu2", "-l gpu", "--", "-p gpu -- x", "-p a : -p b"]
)
def test_words_that_are_no_options(words: str) -> None:
    """srun would take them for the program."""
    assert "is not an option of srun" in problem_of(words.split())


@pytest.mark.parametrize("words", ["-p", "-l -p", "-vp"])
def test_an_option_without_its_value(words: str) -> None:
    """It would take one of ours for it."""
    assert problem_of(words.split()) == "-p needs a value"
