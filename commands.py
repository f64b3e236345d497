"""What train.py and analyse.py share: a parser that answers a mistake with one message and its mend."""

import difflib
import importlib
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

# What a user can get wrong, in the terms of the library that notices it. They are shown as one message as long
# as no work has been done; afterwards the traceback is worth more.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    PermissionError,
    MisconfigurationException,
)

# Lines of a jsonargparse message that speak of types that were tried and failed, not of what the user wrote.
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value",
    "Expected a path but",
    "Subclass types expect",
    "- a class path (str)",
    "- a dict ",
)
_MISPLACED = "Not a valid subclass of"
# One of several types that are accepted; where there is but one, the value stands on the same line.
_KIND = re.compile(
    r"(?:Expected a|Import path does not correspond to a) "
    r"((?!<class 'NoneType'>)(?:<class|typing\.|collections\.|subclass of)(?!.*\. Got value: ).+)"
)
# What only the other command takes, by its first word.
_COMMANDS = {"study": "analyse.py", "model": "train.py", "data": "train.py", "trainer": "train.py"}
# A message about a class that is given as a Callable[[arguments], base]; what it had goes to the end of the line.
_FACTORY = re.compile(
    r"Type \S*Callable\[\[(?P<arguments>.*?)\], \S+ expects a function or a callable class: (?P<text>.*?)"
    r"(?:\. Got value: (?:Namespace\(class_path='(?P<class_path>.+?)'.*|.*))?"
)


def quieten() -> None:
    """Hide what the libraries say about themselves, so that what is left on the screen is about the run."""
    advertisements = ("💡 Tip", "GPU available", "TPU available", "HPU available")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(advertisements))
    for message in (
        ".*treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*many workers.*",
        "(?s).*ModelCheckpoint with manual optimization.*",  # a probe's step is whole before it is counted
    ):
        warnings.filterwarnings("ignore", message=message)


def compute_exactly() -> None:
    """Let float32 be float32 on a GPU too, whose convolutions would round what they are given to 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def config_files(args: Sequence[str]) -> list[str]:
    """The files named by `--config FILE`, `--config=FILE` and `-c FILE`.

    Read from the arguments because the parsed namespace no longer has them where an interpolation was resolved.
    """
    words = [word for argument in args for word in argument.split("=", 1)]
    return [value for option, value in pairwise(words) if option in ("-c", "--config")]


def one_line(error: BaseException) -> str:
    """The message of an exception without its line breaks; of what jsonargparse wraps up, the wrapped message alone,
    behind the name of what it is about where that is one of several (`watch: `).
    """
    lines = str(error).splitlines()
    if lines and lines[0].startswith(_NOISE):
        told = [line.strip() for line in lines if not line.strip().startswith(_NOISE)]
        told = [line.removeprefix("- ") for line in told]
        lines = [line for line in told if not line.startswith(_MISPLACED)] or told or lines
    names = "".join(f"{name}: " for name in _names(error).values())
    return names + (" ".join(" ".join(lines).split()) or type(error).__name__)


def _names(error: BaseException | None) -> dict[str, str]:
    """Of keys that hold things by name (the studies of a list), the name of the one at which jsonargparse stopped.

    Its messages leave that out, so it is read from its variables; where they are others, no name is found.
    """
    found: dict[str, str] = {}
    while error is not None:
        key = ""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__", "").startswith("jsonargparse."):
                key = getattr(frame.f_locals.get("self"), "dest", key)
                if frame.f_code.co_name == "adapt_typehints" and isinstance(name := frame.f_locals.get("k"), str):
                    found[key] = name
        error = error.__cause__
    return found


class OneMessageParser(LightningArgumentParser):
    """Lightning's parser, except that a key must be spelt out and that a mistake is one message on stderr.

    An abbreviated key (``--trainer.max_step 5``) is an error: argparse would otherwise take it for the longer one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """As jsonargparse; a null given to a class inside a class reaches the inner parser as Python's word for it."""
        if isinstance(args, list):
            args = [re.sub(r"^(--[^=]+)=None$", r"\1=null", str(argument)) for argument in args]
        if repeated := next(filter(None, map(_given_twice, config_files(sys.argv[1:] if args is None else args))), ""):
            self.exit(2, f"error: {repeated}\n")
        try:
            return super().parse_args(args, *rest, **kwargs)
        except UnicodeDecodeError as error:  # jsonargparse expects text in every file
            self.error(str(error), error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what would be right; exit code 2."""
        if not self.exit_on_error:  # the parser of one class inside another: the outer one explains
            super().error(message, ex)
        unreadable = next(filter(None, map(_unreadable, config_files(self.args))), "")
        self.exit(2, f"error: {unreadable or explain(message, self, _names(ex))}\n")


def _unreadable(path: str) -> str:
    """Why a file given as `--config` holds no settings, which jsonargparse says without its name; empty if it does."""
    file = Path(path)
    if file.is_dir():
        return f"--config: {path} is a folder: give a file in it"
    if not file.is_file():
        there = {known.stem: str(known) for known in (*Path("configs").rglob("*.yaml"), *file.parent.glob("*.yaml"))}
        near = difflib.get_close_matches(file.stem, there, n=1)
        return f"--config: there is no file {path}{f'; did you mean {there[near[0]]}?' if near else ''}"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"--config: {path}{line}: {error.problem}; mend that line (YAML is indented with spaces, not tabs)"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"--config: {path} is no YAML file that can be read: {one_line(error)}"
    return "" if isinstance(settings, dict) else f"--config: {path} holds no settings by name, such as model: or study:"


def _given_twice(path: str) -> str:
    """The first key that stands twice in one place of a file, of which YAML would keep the last; empty if none does."""
    try:
        nodes = [yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)]
    except (OSError, ValueError, yaml.YAMLError):
        return ""  # told of by whoever reads it
    for node in nodes:  # grows by what each holds
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines:
                    return f"--config: {path}, line {line}: {name} stands in line {lines[name]} too: keep one"
                lines[name] = line
                nodes.append(value)
    return ""


def explain(message: str, parser: ArgumentParser, names: Mapping[str, str] | None = None) -> str:
    """Turn a message of jsonargparse into one that names the whole key and the nearest correct one.

    Args:
        message: of jsonargparse.
        parser: of the command.
        names: what the message leaves out: of a key that holds things by name, the name.

    Only the form of the messages of jsonargparse 4 is relied on; one that is not recognised is shown as it is.
    """
    path: list[str] = []
    kinds: list[str] = []  # what a union takes that are no classes with arguments of their own
    class_path = ""
    misplaced = ""
    skipped = 0
    for line in filter(None, (raw.strip() for raw in message.splitlines())):
        text = line.removeprefix("- ")
        if factory := _FACTORY.fullmatch(text):  # a class that is called later with the arguments left out
            text, class_path = factory["text"], factory["class_path"] or class_path
            skipped = len(factory["arguments"].split(","))
            path.append("init_args")
        elif skipped:
            text = re.sub(r"\. Got value: Namespace\(class_path=.*", "", text)
        if key := re.fullmatch(r'Parser key "(.+?)"(?: element \d+)?:', text):
            path.append(key[1])
            if names and key[1] in names:
                path.append(names[key[1]])
        elif problem := re.fullmatch(r"Problem with given class_path '(.+)':", text):
            class_path = problem[1]
            path.append("init_args")
            kinds.clear()
        elif kind := _KIND.fullmatch(text):
            kinds.append(kind[1])
        elif kinds and not misplaced and (given := re.fullmatch("Given value: ?(.*)", text)):
            return f"{'.'.join(path)}: Expected a {' or '.join(kinds)}. Got value: {given[1]}"
        elif text.startswith(_MISPLACED):
            misplaced = misplaced or text
        elif not (text.startswith(_NOISE) or line.startswith(_NOISE)):
            return _leaf(text, path, class_path, parser, skipped) or " ".join(message.split())
    if misplaced:
        return f"{'.'.join(path)}: write class_path, and the arguments of the class under init_args"
    return " ".join(message.split())


def _leaf(text: str, path: list[str], class_path: str, parser: ArgumentParser, skipped: int = 0) -> str:
    """Explain the innermost line of a message; an empty string where it is not about the innermost thing."""
    where = ".".join(path)
    owner = class_path or "this command"
    if match := re.fullmatch(r"Option '(.+)' is not accepted", text):
        return _unknown(match[1], where, owner, _keys(class_path, parser, skipped))
    if match := re.fullmatch(r"Group '(.+)' does not accept option '(.+)'", text):
        return _unknown(f"{match[1]}.{match[2]}", where, owner, _keys(class_path, parser, skipped))
    if (match := re.fullmatch(r"the following arguments are required: (\w+)", text)) and match[1] in _COMMANDS:
        folder = "configs/studies" if match[1] == "study" else "configs"
        return f"no {match[1]} is given: write --config {folder}/NAME.yaml"
    if match := re.fullmatch(r"unrecognized arguments: ([^- ][^ ]*\.ya?ml)(?: .*)?", text):
        return f"{match[1]} is a configuration: write --config {match[1]}"
    if match := re.fullmatch(r"unrecognized arguments: --([^ =]+)(?:[ =].*)?", text):
        return _unknown(match[1], where, owner, _keys(class_path, parser, skipped))
    key = where.removesuffix("init_args") + "class_path"
    if match := re.fullmatch(r"(--\S+\.help: )?module '(.+)' has no attribute '(.+)'", text):
        names = [name for name in dir(importlib.import_module(match[2])) if not name.startswith("_")]
        return f"{match[1] or f'{key}: '}{match[2]} has no class {match[3]}{_nearest(match[3], names)}"
    if match := re.fullmatch(r"No module named '(.+)'", text):
        return f"{key}: there is no module {match[1]}; check its name, or put its folder on PYTHONPATH"
    if match := re.fullmatch(r"Expected a dot import path string: (.+)", text):
        return f"{where}: there is no class {match[1]}; give its whole path, as in module.Class"
    return f"{where}: {text}" if where else text


def _unknown(key: str, where: str, owner: str, accepted: list[str]) -> str:
    roots = sorted({name.partition(".")[0] for name in accepted})
    root = key.partition(".")[0]
    if not where and root in _COMMANDS and root not in roots:
        return f"{key} is for {_COMMANDS[root]}: give this configuration to python {_COMMANDS[root]}"
    mend = _nearest(key, accepted) or _nearest(key.partition(".")[0], roots)
    if not mend:
        siblings = [name for name in accepted if name.rpartition(".")[0] == key.rpartition(".")[0]]
        mend = f"; there are: {', '.join(siblings)}" if siblings else ""
    return f"unknown key {f'{where}.{key}' if where else key}: {owner} takes no such argument{mend}"


def _nearest(word: str, candidates: list[str]) -> str:
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _keys(class_path: str, parser: ArgumentParser, skipped: int = 0) -> list[str]:
    """Every key that a class (less its first arguments), or without one the command itself, accepts (nested ones with
    dots).
    """
    if class_path:
        module, _, name = class_path.rpartition(".")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False, skip={skipped})
    return [action.dest for action in parser._actions if action.dest not in ("help", "print_config")]
