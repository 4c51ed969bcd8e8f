"""Extension of Griffe, which reads docstrings for the site: Sphinx roles become names in code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([\w.]+)`")


def without_roles(text: str) -> str:
    """Replace roles as Sphinx would show them.

    >>> without_roles("see :class:`~lmsys_unsloth.Predictor` and :func:`load`")
    'see `Predictor` and `load`'
    """
    return ROLE.sub(lambda m: f"`{m[2].rpartition('.')[2] if m[1] else m[2]}`", text)


class Roles(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)
