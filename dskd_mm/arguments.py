"""Refusing arguments that a class does not take, in words that tell which were meant."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any


def arguments_of(cls: type) -> list[str]:
    """Return the names of the arguments of a class.

    These are those of its constructor, of its bases' as far as it hands the rest on to them, and the fields of its
    ``options_class`` if it has one.
    """
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != 'self'}
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break
    options = getattr(cls, 'options_class', None)
    if options is not None:
        names |= {field.name: None for field in dataclasses.fields(options)}
    return list(names)


def check_arguments(cls: type, given: Mapping[str, Any], where: str | None = None) -> None:
    """Verify that a class takes the arguments of a config.

    Args:
        cls (type): The class.
        given (Mapping[str, Any]): The config; its ``type`` and ``_scope_`` are no arguments.
        where (str, optional): Where the config stands. Defaults to None: the name of the class.

    Raises:
        TypeError: If it does not, with what it takes.
    """
    known = arguments_of(cls)
    for name in given:
        if name not in known and name not in ('type', '_scope_'):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean {near[0]!r}? ' if near else ''
            raise TypeError(
                f'{where or cls.__name__} has no argument {name!r} (given as {given[name]!r}). {hint}{cls.__name__} takes '
                f'{", ".join(known)}.'
            )
