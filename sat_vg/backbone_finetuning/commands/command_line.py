"""The ``main`` of a command: its options are read, then it is run; and the packages that some commands need."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_COMMANDS = "sat_vg.backbone_finetuning.commands"


def main_of(
    command: str,
    options: str,
    run: str,
    description: str,
    positionals: Mapping[str, str],
    extra: Sequence[str] = (),
    package: str | None = None,
    **more: Any,
) -> Callable[..., int]:
    """``main(arguments, prog)`` of a command, which returns its exit code.

    What it needs is imported when it is called: torch takes seconds, and --help or a mistyped flag should be answered
    at once; and options have defaults of the settings file, which users edit: an error in it becomes a message.

    Args:
        command: its name.
        options: the class of its options; in the module ``options``, unless it says ``module.Class``.
        run: the function that is called with them; in the module ``run``, unless it says ``module.function``.
        description: for the help.
        positionals: fields by position.
        extra: modules that the extra of the command's name brings.
        package: of the two modules; unset: the command's own folder.
        more: ``renamed`` and ``usage`` of ``parse_options``.
    """

    def found(name: str, usual: str) -> Any:
        module, _, member = name.rpartition(".")
        return getattr(import_module(f"{package or f'{_COMMANDS}.{command}'}.{module or usual}"), member)

    def main(arguments: list[str] | None = None, prog: str = f"sat-vg {command}") -> int:
        def action() -> None:
            kind = found(options, "options")
            given = parse_options(kind, arguments, prog, description, positionals, **more)
            require_extra(command, *extra)
            found(run, "run")(given)

        return run_command(action)

    return main


def require_extra(extra: str, *modules: str) -> None:
    """Refuse to run a command whose packages are not installed.

    Args:
        extra: name of the extra, which is that of the command.
        modules: that it brings.

    Raises:
        ConfigError: one is missing; the message says how to install it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"sat-vg {extra} needs {missing[0]}, which is not installed: pip install 'sat_vg[{extra}]'")
