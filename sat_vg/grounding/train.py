"""The training command: ``python -m sat_vg.grounding.train``."""

from sat_vg.grounding.cli import train


def main(arguments: list[str] | None = None, prog: str = "python -m sat_vg.grounding.train") -> int:
    """Run the command; returns its exit code."""
    return train(arguments, prog)


if __name__ == "__main__":
    raise SystemExit(main())
