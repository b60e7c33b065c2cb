"""Packages that a command needs and a plain installation lacks."""

from importlib.util import find_spec

from sat_vg.backbone_finetuning.utils.errors import ConfigError


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
