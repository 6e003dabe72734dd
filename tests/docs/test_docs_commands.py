"""What the documentation tells a reader to type works, and prints what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from make_docs import not_run
from page_commands import (
    DOCS,
    PageCommand,
    PageError,
    PageFile,
    is_in_a_checkout,
    pages,
    read_page,
    with_outputs,
)
from page_runner import Runner, as_typed, comparable, copy_checkout, do_step, warm

PAGES = [page for page in pages() if read_page(page)]


def ids(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(""))


def has_slow_steps(page: Path) -> bool:
    return any(isinstance(step, PageCommand) and step.slow for step in read_page(page))


@pytest.fixture(scope="module")
def warm_python() -> Iterator[Runner]:
    with warm() as run:
        yield run


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_s_commands_work_and_print_what_it_shows(page, tmp_path, warm_python):
    follow(page, tmp_path, warm_python, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if has_slow_steps(page)], ids=ids)
def test_a_page_s_slow_commands_work_after_its_others(page, tmp_path, warm_python):
    follow(page, tmp_path, warm_python, slow=True)


def follow(page: Path, folder: Path, run: Runner, *, slow: bool) -> None:
    """Do what a reader would."""
    if is_in_a_checkout(page):
        copy_checkout(folder)
        run = as_typed
    for step in read_page(page):
        if isinstance(step, PageCommand) and (step.not_run or (step.slow and not slow)):
            continue
        done = do_step(step, folder, run)
        if done is None or not isinstance(step, PageCommand):
            continue
        where = f"{page.name}:{step.line}: $ {step.command}\n{done.output}"
        assert done.status == 0, f"exit status {done.status}: {where}"
        if step.shown is not None:
            found = step.shown.of(done.output)
            if step.shown.is_exact:
                assert comparable(found) == comparable(step.output), where


def test_the_tutorial_ends_with_the_allocator_that_is_shown_elsewhere():
    files = [step for step in read_page(DOCS / "tutorial.md") if isinstance(step, PageFile)]
    assert (DOCS / "examples" / "mine.py").read_text() in [file.text for file in files]


def test_the_index_lists_every_command_that_no_test_runs():
    assert not_run(pages()) in (DOCS / "README.md").read_text()


PAGE = """\
<!-- file: a/b.txt -->
```
text
```
<!-- shown: two ... three -->
```console
$ first \\
    second  # comment
$ third
one
two
three
```
<!-- not run: needs a GPU -->
```console
$ fourth
```
"""


def test_a_page_is_read_in_order(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    file, first, third, fourth = read_page(tmp_path / "page.md")
    assert file == PageFile("a/b.txt", "text\n")
    assert first.command == "first \\\n    second  # comment"
    assert first.shown is None
    assert (third.line, third.output) == (9, "one\ntwo\nthree")
    assert third.shown.of("zero\ntwo \nand\nthree\nfour") == "two\nand\nthree"
    assert fourth.not_run == "needs a GPU"
    filled = with_outputs(PAGE, [(third, "new")])
    assert filled == PAGE.replace("one\ntwo\nthree", "new")


def test_an_edit_changes_what_is_there_once(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- edit: a.txt -->\n```diff\n one\n-two\n+three\n```\n")
    (edit,) = read_page(page)
    assert edit.made_to("zero\none\ntwo\n") == "zero\none\nthree\n"
    for text in ("one\n", "one\ntwo\none\ntwo\n"):
        with pytest.raises(PageError, match=r"a\.txt"):
            edit.made_to(text)


def test_output_that_nothing_accounts_for_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("```console\n$ echo 1\n2\n```\n")
    with pytest.raises(PageError, match=r"page.md: line 2: shows output"):
        read_page(tmp_path / "page.md")


def test_a_page_that_shows_something_else_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- shown: all -->\n```console\n$ echo 1, after 3.4 s\n1, after 9.9 s\n```\n")
    follow(page, tmp_path, as_typed, slow=False)
    page.write_text(page.read_text().replace("\n1, after", "\n2, after"))
    with pytest.raises(AssertionError, match="echo 1"):
        follow(page, tmp_path, as_typed, slow=False)
    page.write_text("```console\n$ exit 3\n```\n")
    with pytest.raises(AssertionError, match="exit status 3"):
        follow(page, tmp_path, as_typed, slow=False)


def test_forks_answer_as_fresh_processes_do(tmp_path, warm_python):
    (tmp_path / "say.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(int(sys.argv[1]))")
    for command in (
        "python say.py 3 \\\n  'a b'  # words",
        "python -m harness kv.pagesize=1",
        "echo $((1 + 1))",
    ):
        assert warm_python(command, tmp_path) == as_typed(command, tmp_path)
