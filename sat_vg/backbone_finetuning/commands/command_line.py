"""The ``main`` of a command: its options are read, then it is run; and the packages that some commands need."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from sat_vg.backbone_finetuning.configs.option_parser import Options, parse_options
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.backbone_finetuning.utils.quick_imports import without_garbage_collection


def main_of(
    command: str,
    options: type[Options],
    run: str | Callable[[Options], Any],
    description: str,
    positionals: Mapping[str, str],
    extra: Sequence[str] = (),
    **more: Any,
) -> Callable[..., int]:
    """``main(arguments, prog)`` of a command, which returns its exit code.

    Args:
        command: its name.
        options: a dataclass.
        run: what is called with them, or its name, see ``function_of``.
        description: for the help.
        positionals: fields by position.
        extra: modules that the extra of the command's name brings.
        more: ``renamed`` and ``usage`` of ``parse_options``.
    """

    def main(arguments: list[str] | None = None, prog: str = f"sat-vg {command}") -> int:
        def action() -> None:
            given = parse_options(options, arguments, prog, description, positionals, **more)
            require_extra(command, *extra)
            (function_of(options, run) if isinstance(run, str) else run)(given)

        return run_command(action)

    return main


def function_of(options: type, name: str) -> Callable[..., Any]:
    """A function in the module ``run`` beside that of a command's options; ``module.function``: in another one there.

    It is imported only when a command line has been read: torch takes seconds, and --help or a mistyped flag should
    be answered at once.
    """
    module, _, function = name.rpartition(".")
    package = options.__module__.rpartition(".")[0]
    with without_garbage_collection():
        found = import_module(f"{package}.{module or 'run'}")
    return cast(Callable[..., Any], getattr(found, function))


def require_extra(extra: str, *modules: str) -> None:
    """Refuse to run a command whose extra, of the same name, is not installed.

    Raises:
        ConfigError: a module of it is missing; the message says how to install it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"sat-vg {extra} needs {missing[0]}, which is not installed: pip install 'sat_vg[{extra}]'")
