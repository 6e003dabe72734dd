"""python -m harness: one run, or an experiment's sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from harness.arguments import read_flags
from harness.command_help import help_text
from harness.compose import compose_study, hydra_session, parse_command
from harness.engine.device.parallel.launched import Launch, ending_followers, follow_launch
from harness.reporting import reporting
from harness.runs.study import run_study
from harness.schema import admit_files, register_schema


def main() -> None:
    """Entry point of `python -m harness` and of the console script `kvarena`.

    Under torchrun, rank 0 does what the command says, and the others what rank 0 says.
    """
    launch = Launch.of()
    if launch is not None and launch.rank > 0:
        sys.exit(follow_launch(launch))
    with ending_followers(launch):
        _main()


def _main() -> None:
    # a,b,c sweeps with or without Hydra's flag for it
    arguments = [arg for arg in sys.argv[1:] if arg not in ("-m", "--multirun")]
    if any(argument.startswith("-") for argument in arguments):
        sys.exit(reporting(lambda: _hydra_command_line(arguments)))
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str]) -> int:
    def study() -> int:
        command = parse_command(arguments)
        with hydra_session():
            return run_study(command, Console(soft_wrap=True, markup=False))

    return reporting(study)


def _hydra_command_line(arguments: Sequence[str]) -> int:
    """--help, and Hydra's own flags: --cfg job, --info."""
    register_schema()
    flags = read_flags(arguments)
    with hydra_session():
        command = parse_command(flags.settings)
        compose_study(command)  # a mistake ends it here, in one line
        if flags.asks_help:
            print(help_text(command.base_overrides()))
            return 0
    sys.argv[1:] = [*flags.words, *map(admit_files, flags.settings)]
    statuses = [0]

    def task(config: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        GlobalHydra.instance().clear()
        statuses.append(_run(overrides))

    hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(task)()
    return max(statuses)


if __name__ == "__main__":
    main()
