"""`--profile` and `--trace` on real ranks: what limited a run is said at its end.

What is said in each case is tested in tests/unit/display/profiles; these are the seams: from
a rank's stack and torch's recorder to the table, the figure and the trace.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel

TRAINING = """
import time
class Data(torch.utils.data.Dataset):
    def __len__(self): return 10_000
    def __getitem__(self, i):
        if {slow}: time.sleep(0.01)
        return torch.randn(64)
model = DDP(nn.Linear(64, 64))
optimizer = optim.SGD(model.parameters(), lr=0.01)
for step, x in zip(range(25), DataLoader(Data(), batch_size=8{more})):
    model(x).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    {extra}
"""


def _training(slow: str = "False", more: str = "", extra: str = "pass") -> str:
    return TRAINING.format(slow=slow, more=more, extra=extra).strip()


@pytest.mark.alone  # beside others, ranks wait for a processor more than for each other
@pytest.mark.parametrize(
    ("cell", "verdict", "why"),
    [
        (
            _training("True"),
            r"(partly )?input-bound: the ranks wait \d+ % of their time",
            r"line 6 ",
        ),
        (
            _training("rank == 1"),
            r"input-bound on rank 1: .* rank 0 waits \d+ % .* for it",
            "line 6",
        ),
        (
            _training("True", more=", num_workers=1"),
            r"input-bound",
            r"line 10 .*has worker processes",
        ),
        (
            _training(extra="if rank == 0: time.sleep(0.1)"),
            r"straggler: rank 1 waits \d+ % of its time for rank 0, which sleeps",
            r"line 14 \(`if rank == 0: time.sleep\(0.1\)`\)",
        ),
        (
            _training(extra="for _ in range(10): dist.all_reduce(torch.ones(1_000_000))"),
            r"communication-bound: the ranks spend \d+ % of their time in collectives",
            r"line 14 .* in a step, 3\.\d+ MB on average",
        ),
        ("import time\ntime.sleep(1)", r"idle: the ranks sleep, or wait", r"line 3 \(`time.sleep"),
    ],
    ids=["loading", "loading on one", "workers", "a straggler", "collectives", "idle"],
)
def test_a_run_says_what_limits_it(kernel: Kernel, cell: str, verdict: str, why: str) -> None:
    kernel.run("from ddp_magic.wire.profile import Spent as KINDS")
    result = kernel.run(f"%%ddp -n 2 --profile -o run\n{cell}")
    assert re.search(f"^Verdict: {verdict}", result.text, re.MULTILINE), result.text
    assert re.search(f"^Why: .*{why}", result.text, re.MULTILINE), result.text
    assert re.search(r"^Next: .* % of the time$", result.text, re.MULTILINE), result.text
    assert any("image/png" in content["data"] for content in result.displays)
    total = kernel.value("[(t.total_s, sum(map(t.seconds, KINDS))) for t in run.profile.ranks]")
    assert all(whole == pytest.approx(parts) for whole, parts in total)


@pytest.mark.slow
def test_nothing_is_measured_unless_it_is_asked_for(kernel: Kernel) -> None:
    """Neither without the option, nor in the next cell of a session."""
    assert (
        "profile of 2 ranks"
        in kernel.run("%%ddp -n 2 -s s --profile\nimport time\ntime.sleep(0.8)").text
    )
    result = kernel.run(
        "%%ddp -s s\n"
        "import sys, threading\n"
        "hooks = sys.modules['torch.optim.optimizer']._global_optimizer_post_hooks\n"
        "print([t.name for t in threading.enumerate() if 'profile' in t.name], len(hooks))"
    )
    assert "[rank 0] [] 0" in result.text
    assert "Verdict" not in result.text
    again = kernel.run("%%ddp -s s --profile\nimport time\ntime.sleep(0.8)")
    assert "Verdict: idle" in again.text
    kernel.run("%ddp_stop s")


def test_a_run_that_fails_or_is_stopped_has_a_profile(kernel: Kernel) -> None:
    failed = kernel.run(
        "%%ddp -n 2 --profile\nimport time\ntime.sleep(1)\nif rank: 1 / 0\ntime.sleep(9)"
    )
    assert "ZeroDivisionError" in failed.traceback
    assert "Verdict: idle" in failed.text
    killed = kernel.run(
        "%%ddp -n 2 --profile\nimport os, time\ntime.sleep(2)\nif rank: os.kill(os.getpid(), 9)\n"
        "time.sleep(9)"
    )
    assert re.search(r"note: the profile of rank 1 ends after [12].\d s", killed.text), killed.text


def test_after_a_restart_the_last_attempt_is_measured(kernel: Kernel) -> None:
    cell = """%%ddp -n 2 --profile --max-restarts 1
import os, time
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    for i in range(30): time.sleep(0.05); dist.all_reduce(torch.zeros(10))
    if rank == 1: 1 / 0
    dist.barrier()
for i in range(30): dist.all_reduce(torch.zeros(10)); time.sleep(0.05)"""
    result = kernel.run(cell)
    assert result.status == "ok"
    assert re.search(r"\d+ % +[1-4]\.\d s  line 7 ", result.text), result.text
    assert "line 4" not in result.text.split("most expensive lines")[1]
    assert "note: only the time since the restart is measured" in result.text


def test_a_trace_has_the_samples_and_collectives_of_all_ranks(
    kernel: Kernel, shared_kernel_directory: Path
) -> None:
    """It is written beside the notebook, wherever the ranks are then."""
    # A sample is taken every few milliseconds: each kind lasts for many of them.
    work = "for _ in range(20): torch.ones(400, 400) @ torch.ones(400, 400)"
    cell = "%%ddp -n 2 --trace t.json\nimport os\nos.chdir('/')\n"
    kernel.run(cell + _training("rank == 1", extra=work))
    path = shared_kernel_directory / "t.json"
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "rank 0 (cpu)", 1: "rank 1 (cpu)"}
    for rank in names:
        slices = [e for e in events if e["ph"] == "X" and e["pid"] == rank]
        assert {e["cat"] for e in slices} >= {"main thread", "collective", "compute"}
        assert any(e["name"] == "all_reduce" for e in slices)
    assert any(e["ph"] == "s" and e["pid"] == 1 for e in events)
    refused = kernel.run("%%ddp -n 2 --trace no/t.json\nprint('ran')")
    assert "%%ddp --trace: " in refused.text
    assert "ran" not in refused.text.replace("create", "")


def test_from_python_a_run_has_the_numbers(kernel: Kernel) -> None:
    kernel.run(
        "import ddp_magic\n"
        "def work(seconds):\n"
        "    import time\n"
        "    time.sleep(seconds)\n"
        "run = ddp_magic.launch(work, 1.0, nproc_per_node=2, profile=True)\n"
    )
    assert kernel.value("run.profile.verdict").startswith("idle: ")
    assert re.search(
        r"Cell In\[\d+\], line 4 \(`time.sleep\(seconds\)`\)", kernel.value("run.profile.why")
    )
    assert kernel.value("run.profile.ranks[1].idle_s") > 0.9
