"""Names that are not known: the error says what was meant, and what there is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: object, choices: Iterable[str], more: str = "") -> ValueError:
    """The error for a name outside `choices`; the nearest ones first, then all. more: what else may be given."""
    known = list(choices)
    return ValueError(f"unknown {kind} {name!r}; {nearest(name, known)}choose {', '.join(known)}{more}")


def nearest(name: object, choices: Iterable[str]) -> str:
    """The question "did you mean a, b or c? ", up to three names by `difflib`; empty where none is near."""
    near = (
        get_close_matches(name.lower().replace("+", "p"), list(dict.fromkeys(choices))) if isinstance(name, str) else []
    )
    return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}? " if near else ""
