"""A script that teaches a shell to complete kvarena's command lines: `python -m experiments
completion bash`.

Keys, their values, experiments, strategies, commands with their options, and what is stored in
results/ are completed behind `kvarena`, `python -m harness` and `python -m experiments`. The script
asks the Python that wrote it, a fifth of a second a time. docs/howto/completion.md says where it
goes. Exit status: 0, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence

_EXAMPLES = """\
examples:
  python -m experiments completion bash >> ~/.bashrc
  python -m experiments completion zsh >> ~/.zshrc
  python -m experiments completion fish > ~/.config/fish/conf.d/kvarena.fish
"""

# Bash breaks words at = and :, so the line is split anew, and what lies before them is left out of
# the answer. Without an answer, files are completed (-o default).
_BASH = """\
_kvarena() {
    local line=${COMP_LINE:0:COMP_POINT} word before answer
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    [[ ${words[0]} == *python* && ${words[1]} != -m ]] && return
    word=${words[-1]}
    before=${word%"${word##*[$COMP_WORDBREAKS]}"}
    COMPREPLY=()
    while IFS= read -r answer; do
        [[ $answer == *[=.] ]] || answer+=" "
        [[ -n ${answer// /} ]] && COMPREPLY+=("${answer#"$before"}")
    done < <(PYTHON -m experiments.completion "${words[@]}" 2>/dev/null)
}
complete -o nospace -o bashdefault -o default -F _kvarena kvarena python python3
"""

_ZSH = """\
_kvarena() {
    local -a given answers
    given=("${(@)words[1,CURRENT-1]}" "$PREFIX")
    answers=("${(@f)$(PYTHON -m experiments.completion "${(@)given}" 2>/dev/null)}")
    answers=("${(@)answers:#}")
    if (( ${#answers} )); then
        compadd -Q -S '' -- "${(@)answers:#*[^=.]}"
        compadd -Q -S ' ' -- "${(@)answers:#*[=.]}"
    else
        _files
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _kvarena kvarena python python3
"""

_FISH = """\
function __kvarena
    set -l words (commandline -opc) (commandline -ct)
    PYTHON -m experiments.completion $words 2>/dev/null
end
function __kvarena_is_meant
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test $words[2] = -m
    and contains -- $words[3] harness experiments
end
complete -c kvarena -a '(__kvarena)'
complete -c python -n __kvarena_is_meant -a '(__kvarena)'
complete -c python3 -n __kvarena_is_meant -a '(__kvarena)'
"""

SCRIPTS: Mapping[str, str] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def main(arguments: Sequence[str]) -> int:
    """Print the script for a shell."""
    given = _parser().parse_args(arguments)
    print(SCRIPTS[given.shell].replace("PYTHON", shlex.quote(sys.executable)), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments completion", description=__doc__, epilog=_EXAMPLES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    return parser
