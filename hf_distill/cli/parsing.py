"""The parser of a command: dataclasses in, help that can be read, ``--config`` files, good errors.

Every option is defined once, as a field of a dataclass, and ``HfArgumentParser`` does the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from transformers import HfArgumentParser

from hf_distill.cli.config_files import read_yaml, resolved

# Options whose value may begin with "~/" and is not a path.
_TEXTS = ("--question", "--context")


_SOURCE = re.compile(
    r"(.+_)?(file|dir|path|model)|teacher|student|models|teacher_outputs|student_(alone|distilled)"
)
"""Names of options that name a file, a folder or a model."""


class Section(NamedTuple):
    """A part of the help text."""

    title: str
    names: Collection[str]
    """The options it lists, by field name, in this order; a name that was there is left out."""
    description: str | None = None


class Preset(NamedTuple):
    """Options by name, brought in before all others by an option that names the preset."""

    option: str
    """The option."""
    options: Callable[[str], Mapping[str, Any]]
    """Finds them; a ``ValueError`` tells what is wrong with the name."""
    part: Collection[str] = ()
    """Those of them that belong together,"""
    replaced_by: Collection[str] = ()
    """and are left out if one of these is given as well."""


class CommandParser(HfArgumentParser):
    """``HfArgumentParser`` for a command of ``hf-distill``.

    Args:
        dataclass_types: what the options are read into.
        sections: the parts of the help text, in this order.
        rest: the title of the last part, with the options that no section names.
        hidden: options that are accepted and not listed.
        preset: options that one option stands for.
        positional: the help texts of arguments that are needed and have no ``--``, by name.
        raises: raise a ``ValueError`` where the program would end.
        usage: the short form of the call; ``--help`` lists the rest.
        **kwargs: as for ``argparse.ArgumentParser``.
    """

    def __init__(
        self,
        dataclass_types: Sequence[Any],
        *,
        sections: Sequence[Section],
        usage: str,
        rest: str = "other options",
        hidden: Collection[str] = (),
        preset: Preset | None = None,
        positional: Mapping[str, str] = {},
        raises: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dataclass_types,
            usage=usage,
            formatter_class=_Formatter,
            allow_abbrev=False,
            **kwargs,
        )
        self._sections = sections
        self._rest = rest
        self._hidden = hidden
        self._preset = preset
        self._raises = raises
        for name, text in positional.items():
            self.add_argument(name, metavar=name.upper(), help=text)

    def parse(self, argv: Iterable[str]) -> tuple[Any, ...]:
        """Read the options into the dataclasses, in the order of ``dataclass_types``.

        Options of a preset come first, then those of a ``--config`` file, then those of the
        command line: the last one wins. Whatever is wrong ends the program with status 2 and one
        message.
        """
        words = self._with_config(argv)
        self._check_names(words)
        try:
            parsed = self.parse_args_into_dataclasses(words, look_for_args_file=False)
        except ValueError as error:
            self.error(str(error))
        self._check_sources(parsed)
        return parsed

    def _check_sources(self, parsed: Iterable[Any]) -> None:
        """Refuse an empty text for a file, a folder or a model: as a path it is this folder."""
        for part in parsed:
            for name, value in vars(part).items():
                if _SOURCE.fullmatch(name) and "" in (
                    value if isinstance(value, list) else [value]
                ):
                    positional = isinstance(part, argparse.Namespace)
                    shown = name.upper() if positional else f"--{name}"
                    self.error(f"{shown} is empty; name a file, folder or model, or leave it out.")

    def given(self, argv: Iterable[str]) -> dict[str, Any]:
        """Return the options that are given, by name, as ``parse`` reads them; no defaults."""
        words = self._with_config(argv)
        self._check_names(words)
        absent = object()
        namespace = argparse.Namespace(**{action.dest: absent for action in self._actions})
        self.parse_known_args(words, namespace)
        found = {name: value for name, value in vars(namespace).items() if value is not absent}
        # What has no form on the command line.
        return {**self._defaults, **found}

    def describe(self, texts: Mapping[str, str], *, required: str) -> None:
        """Replace the help texts of options, and require one of them."""
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)
            action.required = action.required or action.dest == required

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and a message that names the option once."""
        if self._raises:
            raise ValueError(message)
        message = re.sub(r"(?<=[ ])(--[\w-]+)(/--[\w-]+)+", r"\1", message)
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        sys.stderr.write(f"`{self.prog} --help` lists the options.\n")
        raise SystemExit(2)

    def format_help(self) -> str:
        """Return the help text, in sections."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        listed = set(self._hidden)
        for section in self._sections:
            self._add_section(formatter, section, listed)
        rest = [action.dest for action in self._actions]
        self._add_section(formatter, Section(self._rest, rest), listed)
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _add_section(
        self, formatter: argparse.HelpFormatter, section: Section, listed: set[str]
    ) -> None:
        # Of two options with one name the first: `--no_x` is named in the help of `--x`.
        actions = {action.dest: action for action in reversed(self._actions)}
        names = dict.fromkeys(name for name in section.names if name not in listed)
        formatter.start_section(section.title)
        formatter.add_text(section.description)
        formatter.add_arguments([actions[name] for name in names if name in actions])
        formatter.end_section()
        listed.update(section.names)

    def _check_names(self, words: Sequence[str]) -> None:
        """End the program if there is no such option; also where a mistyped one is missing."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        _, unknown = self.parse_known_args(words)
        for action in required:
            action.required = True
        if unknown:
            self.error(self._describe_unknown(unknown, words))

    def _describe_unknown(self, words: Sequence[str], given: Sequence[str]) -> str:
        first = words[0]
        if not first.startswith("-"):
            named = (one for one in ("model", "models") if one in self._names())
            meant = next((one for one in named if self._given(given, one) is None), None)
            hint = f" Did you mean --{meant} {first}?" if meant else ""
            return f"{first!r} is neither an option nor a value of the option before it.{hint}"
        name = first.lstrip("-").partition("=")[0].replace("-", "_")
        return f"there is no option {first.partition('=')[0]}.{self._suggest(name, prefix='--')}"

    def _suggest(self, name: str, prefix: str = "") -> str:
        names = self._names()
        near = difflib.get_close_matches(name, names, n=1)
        near = near or [one for one in names if "".join(w[:1] for w in one.split("_")) == name]
        return f" Did you mean {prefix}{near[0]}?" if near else ""

    def _names(self) -> list[str]:
        return [action.dest for action in self._actions if action.option_strings]

    # ---- config files and presets --------------------------------------------------------------

    def _with_config(self, argv: Iterable[str]) -> list[str]:
        argv = list(_expanded(argv))
        path = self._given(argv, "config")
        config = self._read_config(path) if path else {}
        in_file = {str(key).replace("-", "_"): value for key, value in config.items()}

        def given(option: str) -> Any:
            value = self._given(argv, option)
            return in_file.get(option) if value is None else value

        words: list[str] = []
        if self._preset is not None and (name := given(self._preset.option)) is not None:
            try:
                options = self._preset.options(str(name))
            except ValueError as error:
                self.error(f"--{self._preset.option}: {error}")
            if any(given(option) is not None for option in self._preset.replaced_by):
                options = {k: v for k, v in options.items() if k not in self._preset.part}
            words += self.words_of(options, f"{self._preset.option} {name}")
        if path:
            words += _expanded(self.words_of(config, path))
        return [*words, *argv]

    def _given(self, words: Sequence[str], name: str) -> str | None:
        """Return the value that an option is given in ``words``; None if it is not given."""
        spellings = [s for a in self._actions if a.dest == name for s in a.option_strings]
        if not spellings:
            return None
        only = argparse.ArgumentParser(prog=self.prog, add_help=False, allow_abbrev=False)
        only.add_argument(*spellings, dest=name)
        value: str | None = getattr(only.parse_known_args(words)[0], name)
        return value

    def words_of(self, options: Mapping[Any, Any], source: str) -> Iterator[str]:
        """Yield options by name as they would be written on the command line.

        Args:
            options: a file's or a preset's. ``None`` is an option that is not given.
            source: where they are from, for errors.
        """
        types = _types_of(self.dataclass_types)
        actions = {a.dest: a for a in reversed(self._actions) if a.dest in types}
        for key, value in options.items():
            name = str(key).replace("-", "_")
            if name not in actions or name == "config":
                self.error(f"{source}: there is no option {str(key)!r}.{self._suggest(name)}")
            action = actions[name]
            if value is None:
                continue
            if isinstance(value, list | dict):
                if not _takes(types[name], type(value)):
                    self.error(
                        f"{source}: {name} takes one value, but it is a {type(value).__name__}: "
                        f"{resolved(value)!r}."
                    )
                if isinstance(value, list) and None in value:
                    self.error(f"{source}: {name} has an empty value in its list; leave it out.")
                if action.nargs == "+":
                    yield from (f"--{name}", *map(str, value))
                else:
                    # What has no form on the command line reaches the dataclass as it is.
                    texts = isinstance(value, list)
                    self.set_defaults(
                        **{name: [str(one) for one in value] if texts else resolved(value)}
                    )
                continue
            meant = resolved(value)
            if meant is True and action.nargs == "?":
                yield f"--{name}"
            elif isinstance(meant, bool) and (value is meant or _takes(types[name], bool)):
                # `eval_strategy: no`, as YAML reads it, is false.
                yield f"--{name}={'yes' if meant else 'no'}"
            else:
                yield f"--{name}={value}"

    def _read_config(self, path: str) -> dict[object, Any]:
        try:
            with open(path, encoding="utf-8") as file:
                content = read_yaml(file.read())
        except OSError as error:
            self.error(f"--config {path} cannot be read: {error.strerror}.")
        except ValueError as error:  # also of text that is not UTF-8
            self.error(f"--config {path} is not a YAML file of options: {error}")
        if not isinstance(content, dict):
            self.error(
                f"--config {path} must hold options, one `name: value` per line, but it holds a "
                f"{type(resolved(content)).__name__}."
            )
        spellings: dict[str, str] = {}
        for key in map(str, content):
            other = spellings.setdefault(key.replace("-", "_"), key)
            if other != key:
                self.error(f"--config {path}: {other} and {key} are one option; leave one out.")
        return content


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each option, short placeholders, and only defaults that say something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n " in text:  # examples keep their lines
            return super()._fill_text(text, width, indent)
        parts = text.strip().split("\n\n")
        paragraphs = [self._split_lines(part, width - len(indent)) for part in parts]
        return "\n\n".join(indent + f"\n{indent}".join(lines) for lines in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Names of options and tasks have hyphens, and are to be copied.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar)
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        return f"{action.option_strings[0]} {_placeholder(action)}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        default = action.default
        if isinstance(default, bool):
            negative = f"; turn off: --no_{action.dest}" if default else ""
            return f"{text} (default: {str(default).lower()}{negative})"
        if default in (None, "", argparse.SUPPRESS) or default == []:
            return text
        return f"{text} (default: %(default)s)"


def _placeholder(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None:
        word = "{" + ",".join(str(choice) for choice in action.choices) + "}"
        word = word if len(word) < 40 else "NAME"
    elif isinstance(action.default, bool) or getattr(action.type, "__name__", "").endswith("bool"):
        return "[true|false]"
    else:
        word = {"int": "N", "float": "X"}.get(getattr(action.type, "__name__", ""), "TEXT")
    return f"{word} …" if action.nargs == "+" else word


def _expanded(words: Iterable[str]) -> Iterator[str]:
    """Replace a leading ``~/``, which a shell leaves in ``--option=~/…``, and YAML has as it is."""
    option = ""
    for word in words:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        option = name or option
        if value.startswith("~/") and option not in _TEXTS:
            word = f"{name}{sign}{os.path.expanduser(value)}"
        yield word


def _types_of(dataclass_types: Iterable[Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for dataclass_type in dataclass_types:
        resolved = typing.get_type_hints(dataclass_type)
        hints |= {f.name: resolved[f.name] for f in dataclasses.fields(dataclass_type) if f.init}
    return hints


def _takes(hint: Any, kind: type) -> bool:
    """Return whether a ``kind`` fits a type hint such as ``list[str] | str | None``."""
    origin = typing.get_origin(hint) or hint
    return origin is kind or any(
        (typing.get_origin(part) or part) is kind for part in typing.get_args(hint)
    )
