"""A rank is a script: what libraries look at, and what a cell starts in its turn."""

from __future__ import annotations

from tests.integration.kernel import Kernel


def test_a_rank_is_not_interactive(kernel: Kernel) -> None:
    """By what Lightning, tqdm, transformers and rich go, nobody types into a rank."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "import sys\n"
        "from IPython import get_ipython as shell\n"
        "print(hasattr(sys, 'ps1') or bool(sys.flags.interactive),\n"
        "      'ipykernel.zmqshell' in sys.modules, 'IPKernelApp' in shell().config,\n"
        "      hasattr(shell(), 'kernel'), 'JPY_PARENT_PID' in os.environ)"
    )
    assert result.text.count(" False False False False False\n") == 2, result
