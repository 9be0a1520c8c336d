"""The options of a method, of the types that its function declares: as values, or as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..choices import nearest
from .registry import Method

KEYWORDS = ("grid", "space", "variable", "snap", "end")  # of `odediff.plan`, whatever the method
_TYPES: dict[str, type | tuple[type, ...]] = {"float": (int, float), "int": int, "str": str, "None": type(None)}
_READ: dict[str, type] = {"float": float, "int": int, "str": str}


def checked(name: str, method: Method, args: dict[str, Any]) -> dict[str, Any]:
    """The method's options with those given, numpy scalars as plain numbers so that a plan can be written as JSON.

    ValueError: a name that the method does not have, a value of another type than `Method.kinds` says.
    """
    check_names(name, method.args, args)
    given = {key: value.item() if isinstance(value, np.generic) else value for key, value in args.items()}
    for key, value in given.items():
        kinds = method.kinds[key]
        if isinstance(value, bool) or not any(isinstance(value, _TYPES[kind]) for kind in kinds):
            raise ValueError(f"{key} = {value!r} is no option of {name}, which takes {' or '.join(kinds)} there")
    return {**method.args, **given}


def parsed(name: str, method: Method, texts: dict[str, str]) -> dict[str, Any]:
    """Options from text: "None" is None where the method takes it, the rest is read as its number or string.

    ValueError: a name that the method does not have, a text that is no number where it takes one.
    """
    check_names(name, method.args, texts)
    return {key: _read(name, key, text, method.kinds[key]) for key, text in texts.items()}


def check_names(name: str | None, has: Iterable[str], given: Iterable[str], keywords: Iterable[str] = KEYWORDS) -> None:
    """Refuse what is not among the options that the method `has`; None is no method.

    ValueError: with the nearest of its options and of the caller's keywords.
    """
    options, known = sorted(has), list(keywords)
    foreign = sorted(set(given) - set(options))
    if not foreign:
        return
    hint = "" if foreign[0] in known else nearest(foreign[0], [*options, *known])
    if name is None:
        raise ValueError(f"{foreign[0]!r} belongs to a method, and none is named; {hint}name one of METHODS")
    raise ValueError(f"{name} has no option {foreign[0]!r}; {hint}it takes {options or 'none'}")


def _read(name: str, key: str, text: str, kinds: list[str]) -> Any:
    if text == "None" and "None" in kinds:
        return None
    for kind in kinds:
        try:
            return _READ[kind](text)
        except (KeyError, ValueError):
            continue
    raise ValueError(f"{key} = {text!r} is no option of {name}, which takes {' or '.join(kinds)} there")
