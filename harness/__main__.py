"""python -m harness: one run, or an experiment's sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from harness.compose import hydra_session, parse_command, register_schema
from harness.config import ConfigError
from harness.runs.study import run_study


def main() -> None:
    """Entry point of `python -m harness` and of the console script `kvarena`."""
    arguments = sys.argv[1:]
    if any(argument.startswith("-") for argument in arguments):
        _hydra_command_line()
        return
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str]) -> int:
    console = Console(soft_wrap=True)
    try:
        command = parse_command(arguments)
        with hydra_session():
            return run_study(command, console)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted: finished runs are stored; the same command goes on from here",
            file=sys.stderr,
        )
        return 130


def _hydra_command_line() -> None:
    """Hydra's own flags: --help, --cfg job, --info, --multirun (one run a job)."""
    register_schema()

    def task(config: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        GlobalHydra.instance().clear()
        if code := _run(overrides):
            sys.exit(code)

    hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(task)()


if __name__ == "__main__":
    main()
