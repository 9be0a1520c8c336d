"""The options of a method, of the types that its function declares: as values, or as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .registry import Method

_TYPES: dict[str, type | tuple[type, ...]] = {"float": (int, float), "int": int, "str": str, "None": type(None)}
_READ: dict[str, type] = {"float": float, "int": int, "str": str}


def checked(name: str, method: Method, args: dict[str, Any]) -> dict[str, Any]:
    """The method's options with those given, numpy scalars as plain numbers so that a plan can be written as JSON.

    ValueError: a name that the method does not have, a value of another type than `Method.kinds` says.
    """
    _check_names(name, method, args)
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
    _check_names(name, method, texts)
    return {key: _read(name, key, text, method.kinds[key]) for key, text in texts.items()}


def _check_names(name: str, method: Method, given: Iterable[str]) -> None:
    foreign = sorted(set(given) - set(method.args))
    if foreign:
        raise ValueError(f"{name} has no option {foreign[0]!r}; it takes {sorted(method.args) or 'none'}")


def _read(name: str, key: str, text: str, kinds: list[str]) -> Any:
    if text == "None" and "None" in kinds:
        return None
    for kind in kinds:
        try:
            return _READ[kind](text)
        except (KeyError, ValueError):
            continue
    raise ValueError(f"{key} = {text!r} is no option of {name}, which takes {' or '.join(kinds)} there")
