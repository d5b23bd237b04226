"""Options that `%%ddp` does not have but users try, most of them torchrun's: what to do instead."""

from __future__ import annotations

_BY_ITSELF = "%%ddp does this by itself, so omit the option"
_LOGS = "every rank's text is shown and logged; --show chooses the ranks to show"
_CELL = "%%ddp runs the cell, so import the module there and call its functions"
_OMIT = "omit the option"

_OF_TORCHRUN = {
    ("--node-rank", "--standalone", "--master-addr", "--master-port", "--local-addr"): _BY_ITSELF,
    ("--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--use-env"): _BY_ITSELF,
    ("--log-dir", "--redirects", "-r", "--tee", "-t", "--local-ranks-filter"): _LOGS,
    ("--module", "-m", "--no-python", "--run-path"): _CELL,
    ("--monitor-interval", "--start-method", "--role", "--logs-specs"): _OMIT,
    ("--event-log-handler", "--numa-binding", "--signals-to-handle"): _OMIT,
    ("--virtual-local-rank", "--shutdown-timeout", "--duplicate-stdout-filters"): _OMIT,
}
_OTHERS = dict.fromkeys(["--cpu", "--no-cuda", "--no-gpu"], "-g none runs the cell on the CPU")
_OTHERS |= dict.fromkeys(["-V", "--version"], "%pip show ddp-magic shows the version")
_ADVICE = {flag: advice for flags, advice in _OF_TORCHRUN.items() for flag in flags}


def instead_of(flag: str) -> str:
    """Return that an option is not supported and what to do; empty if it is unknown here too."""
    if advice := _OTHERS.get(flag):
        return f"unsupported option {flag}: {advice}"
    long = "--" + flag[2:].replace("_", "-")  # torchrun takes both
    advice = _ADVICE.get(flag) or _ADVICE.get(long)
    return f"unsupported option {flag} of torchrun: {advice}" if advice else ""
