"""The reference results: which commands they are made with, and where they lie.

README shows them. A command more is a line more in REFERENCES.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference"
OUTPUT = "output.txt"
PEERS = "engine,generate:16,generate:32,generate_batch"


@dataclass(frozen=True, slots=True)
class Reference:
    """A command, and what is kept of it in results/reference/NAME/.

    arguments: after `python`. typed: what README's reader types; the command itself if empty.
    study: of its results, exported whole; empty for a command that stores no runs. files: others
    that it writes, in its working folder. reads: files of the checkout that it names. pictures:
    figures of the study that README shows.
    """

    name: str
    arguments: tuple[str, ...]
    typed: str = ""
    study: str = ""
    files: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As a reader types it."""
        return self.typed or f"python {' '.join(self.arguments)}"

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return FOLDER / self.name


def experiment(name: str, picture: str, *settings: str) -> Reference:
    """The quick preset of `experiment=NAME`."""
    arguments = ("-m", "harness", f"experiment={name}", *settings)
    return Reference(name, arguments, study=name, pictures=(picture,))


REFERENCES = (
    Reference("single", ("-m", "harness"), study="single"),
    experiment("memory_map", "memory_map"),
    experiment("motivation", "motivation"),
    experiment("beam_search", "beam_search_saved"),
    # simulated alone: their times were taken on a busy machine, and are to be taken on a quiet one
    experiment("compare_allocators", "compare_fig2", "executor=simulated"),
    experiment("sweep_page_size", "page_size_waste", "executor=simulated"),
    Reference(
        "modes",
        ("-m", "experiments", "modes"),
        "make modes",
        files=tuple(f"results/modes/modes.{end}" for end in ("md", "csv", "json")),
    ),
    Reference(
        "contract",
        ("-m", "allocators.contract", "docs/examples/mine.py:Mine"),
        "make contract A=docs/examples/mine.py:Mine",
        reads=("docs/examples/mine.py",),
    ),
    Reference(
        "peers",
        ("-m", "benchmarks.peers", "--repetitions", "1", "--peers", PEERS, "--json", "peers.json"),
        f"python -m benchmarks.peers --repetitions 1 --peers {PEERS}",
        files=("peers.json",),
    ),
)
