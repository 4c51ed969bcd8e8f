"""The heading of every result: what is needed to reproduce it."""

from __future__ import annotations

import datetime
import os

from lmsys_unsloth.config.environment import describe_environment


def heading(title: str, command: str) -> str:
    """Return title, date, commit, command, machine and versions as Markdown."""
    env = describe_environment(command)
    machine = [f"{env['cores']} cores ({env['processor']})", f"{env['memory_gib']} GiB", *env["gpus"]]
    versions = [f"{name} {env['packages'].get(name)}" for name in ("torch", "unsloth", "trl")]
    return (
        f"# {title}\n\n{datetime.date.today()}, commit {env['commit']}, `{command}`,\n{', '.join(machine)}, "
        f"Python {env['python']}, {', '.join(versions)}, load average {os.getloadavg()[0]:.1f}.\n"
    )
