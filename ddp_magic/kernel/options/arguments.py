"""From a magic's line, or a call's keywords, to the values of the options.

argparse is not used: its messages differ between Python versions, it reads `-session` as
`-s ession`, and it suggests nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import shlex
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ddp_magic.kernel.options.declaration import KEYWORDS, OPTIONS
from ddp_magic.kernel.options.expansion import ExpansionError
from ddp_magic.kernel.options.option import Option, OptionError
from ddp_magic.kernel.options.unsupported import instead_of

# What editors and chat programs make of one or two hyphens.
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_ARGUMENTS = "put arguments of the cell after --"
_NUMBER = re.compile(r"-\.?\d")  # a negative number is a value, not an option


def parse_keywords(given: Mapping[str, object]) -> SimpleNamespace:
    """Check the keywords of `launch` or `run`; None stands for an option's default.

    Returns:
        The values by the options' names, and `given`: the options that are not left to a default.

    Raises:
        TypeError: There is no such option.
        OptionError: An option cannot have this value.
    """
    found = {option.name: option.default for option in OPTIONS}
    found["given"] = frozenset(name for name, value in given.items() if value is not None)
    for name, value in given.items():
        option = KEYWORDS.get(name)
        if option is None:
            raise TypeError(f"unrecognized option {name}: {_instead_of_keyword(name)}")
        if value is not None:
            try:
                found[name] = option.value(value)
            except ValueError as error:
                raise OptionError(name, str(error)) from None
    return SimpleNamespace(**found)


def _instead_of_keyword(name: str) -> str:
    if name in ("out", "o"):
        return "launch and run return the Run"
    dashes = "-" if len(name) == 1 else "--"
    near = nearest(dashes + name, KEYWORDS.values())
    return f"did you mean {near.name}?" if near else f"use one of {', '.join(KEYWORDS)}"


def parse_line(
    magic: str,
    line: str,
    options: Sequence[Option] = OPTIONS,
    split: Callable[[str], list[str]] = shlex.split,
) -> SimpleNamespace:
    """Read the line of a magic.

    Args:
        magic: Its name, for messages: `%%ddp`.
        line: What follows the name.
        options: What it takes.
        split: Splits the line into words.

    Returns:
        The values by the options' names, and `given`: the options that the line names.

    Raises:
        ValueError: The line is wrong; the text is the message to show.
    """
    try:
        words = deque(split(line))
    except ExpansionError as error:
        raise ValueError(f"{magic}: {error}") from None
    except ValueError as error:
        if "quot" not in str(error):
            problem = "a backslash does not continue the line: write all options in one line"
            raise ValueError(f"{magic}: {problem}") from None
        comment = "; put comments below this line" if "#" in line else ""
        raise ValueError(f"{magic}: missing closing quote in: {line.strip()}{comment}") from None
    found: dict[str, Any] = {option.name: option.default for option in options}
    named: set[str] = set()
    flags = {flag: option for option in options for flag in option.flags}
    negations = {option.negation: option for option in options if option.negation}
    positional = [option for option in options if not option.flags]
    while words:
        word = words.popleft()
        if word == "--" and "--" in flags:
            option = flags["--"]
            found[option.name] = tuple(words)
            words.clear()
        elif word in negations:
            option = negations[word]
            found[option.name] = False
        elif word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
            flag, joined = _split(magic, word, flags)
            option = flags[flag]
            found[option.name] = _flag_value(magic, option, flag, joined, words)
        elif positional:
            option = positional.pop(0)
            found[option.name] = _checked(magic, option, "", word)
        else:
            raise ValueError(_unexpected(magic, word, flags, named))
        named.add(option.name)
    return SimpleNamespace(**found, given=frozenset(named))


def _flag_value(magic: str, option: Option, flag: str, text: str | None, words: deque[str]) -> Any:  # noqa: ANN401 -- of each option's own type
    """Return the value of a flag: joined to it (`text`), or the next word."""
    if not option.metavar:
        if text is not None:
            raise ValueError(f"{magic} {flag}: unexpected value {text!r}: this option takes none")
        return True
    if text is None:
        if not words or (_is_dashed(words[0]) and not option.any_word):
            raise ValueError(f"{magic} {flag}: missing {option.what}: use {option.use}")
        text = words.popleft()
    if option.joint:
        _refuse_spaces(magic, option, flag, [text, *itertools.takewhile(_is_value, words)])
    return _checked(magic, option, flag, text)


def _is_dashed(word: str) -> bool:
    return word.startswith("-") and not _NUMBER.match(word)


def _is_value(word: str) -> bool:
    return not _is_dashed(word) and not word.startswith("#")


def _refuse_spaces(magic: str, option: Option, flag: str, parts: Sequence[str]) -> None:
    """Refuse a value whose parts are words of their own: `--pull a, b`.

    Raises:
        ValueError: There are several parts, and together they are a value.
    """
    if len(parts) == 1:
        return
    whole = " ".join(parts)
    if option.joint == ",":
        whole = re.sub(r"[\s,]+", ",", whole)
    try:
        option.value(whole)
    except ValueError:
        return  # no value with another spelling either
    valid = f'"{whole}"' if option.joint == " " else whole
    spaced = " ".join(parts)
    raise ValueError(f"{magic} {flag}: unexpected space in {spaced!r}: write {flag} {valid}")


def _checked(magic: str, option: Option, flag: str, text: str) -> Any:  # noqa: ANN401 -- as above
    try:
        return option.value(text)
    except ValueError as error:
        raise ValueError(f"{f'{magic} {flag}'.rstrip()}: {error}") from None


def _split(magic: str, word: str, flags: Mapping[str, Option]) -> tuple[str, str | None]:
    """Return the flag in a word and the value that is joined to it, if any."""
    if not word.startswith("--"):
        return _split_short(magic, word, flags)
    name, equals, text = word.partition("=")
    if name == "--":  # --=3
        raise ValueError(_unrecognized(magic, word, flags))
    candidates = [name] if name in flags else matching(name, flags)
    if len(candidates) > 1:
        several = f"{', '.join(candidates[:-1])} or {candidates[-1]}"
        raise ValueError(f"{magic}: ambiguous option {name}: use {several}")
    if not candidates:
        raise ValueError(_unrecognized(magic, name, flags))
    return candidates[0], text if equals else None


def _split_short(magic: str, word: str, flags: Mapping[str, Option]) -> tuple[str, str | None]:
    flag, text = word[:2], word[2:]
    if not text and flag in flags:
        return flag, None
    # -session is a misspelled --session, not `-s ession`.
    misspelled = len(word) > 3 and any(name.startswith(f"-{word}") for name in flags)
    option = flags.get(flag)
    if option is None or not option.metavar or misspelled:
        apart = [f"-{letter}" for letter in word[1:]]
        if not misspelled and all(letter in flags for letter in apart):  # -qn 2
            raise ValueError(f"{magic}: unrecognized option {word}: write {' '.join(apart)}")
        raise ValueError(_unrecognized(magic, word, flags))
    text = text.removeprefix("=")
    try:
        option.value(text)
    except ValueError:
        if nearest(word, flags.values()):  # -np 2
            raise ValueError(_unrecognized(magic, word, flags)) from None
    return flag, text


def matching(start: str, flags: Collection[str]) -> list[str]:
    """Return the long flags that begin so: an abbreviation is valid if there is one."""
    return [flag for flag in flags if flag.startswith(start) and len(flag) > 2]


def _unrecognized(magic: str, word: str, flags: Mapping[str, Option]) -> str:
    if "--" in flags and (instead := instead_of(word)):
        return f"{magic}: {instead}"
    head = f"{magic}: unrecognized option {word}: "
    near = nearest(word, flags.values())
    if near and near.spelling == "--":
        return head + _ARGUMENTS
    if near:
        return f"{head}did you mean {near.spelling}?"
    arguments = f"; {_ARGUMENTS}" if "--" in flags else ""
    return f"{head}{magic} --help lists the options{arguments}"


def _unexpected(magic: str, word: str, flags: Mapping[str, Option], named: Collection[str]) -> str:
    text = f"{magic}: unexpected argument {word!r}: "
    if bare := word.lstrip(_DASHES + "-") if word[:1] in _DASHES else "":
        flag = f"-{bare}" if len(bare) == 1 else f"--{bare}"
        return f"{text}it starts with a dash instead of a hyphen: type {flag}"
    if word.startswith("#"):
        return f"{text}put comments below this line"
    if (count := flags.get("-n")) and count.name not in named:
        with contextlib.suppress(ValueError):
            return f"{text}did you mean -n {count.value(word)}?"
    return text + (_ARGUMENTS if "--" in flags else f"{magic} --help shows the usage")


def nearest(word: str, options: Collection[Option]) -> Option | None:
    """Return the option that a word is likely to mean."""
    spellings = {
        flag: option for option in options for flag in (*option.flags, *option.also) if flag != "--"
    }
    if option := spellings.get(word) or spellings.get(word.lower()):
        return option
    name = "--" + word.lstrip("-").replace("_", "-").lower()
    if name in spellings:
        return spellings[name]
    if len(name) > 3 and len(starts := matching(name, spellings)) == 1:
        return spellings[starts[0]]
    # Compared without the dashes, which would make all alike.
    names = {
        flag.lstrip("-"): option
        for flag, option in spellings.items()
        if len(flag) > 2 and "--" not in option.flags
    }
    found = difflib.get_close_matches(name[2:], list(names), n=1, cutoff=0.65)
    return names[found[0]] if found else None
