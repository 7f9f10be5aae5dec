"""README, CONTRIBUTING, CHANGELOG and docs tell the truth about the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
FOLDERS = "configs|benchmarks|docs|colab|scripts|simmim_jax|tests"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w(?![\w<*])")
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)")
IMAGE = re.compile(r"<img[^>]*\ssrc=[\"'](?!https?://)([^\"']+)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.M)
CODE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)


def module_file(module: str) -> str:
    """Return the file that `python -m` runs."""
    path = module.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


def mentions(text: str) -> set[str]:
    """Return files and folders that a page names, and modules that it runs."""
    modules = re.findall(r"-m (simmim_jax[\w.]*)", text)
    return {module_file(module) for module in modules} | set(PATH.findall(text))


def links(text: str) -> set[str]:
    """Return the relative links and images of a page, anchors included."""
    return {*LINK.findall(text), *IMAGE.findall(text)}


def text_of(page: Path) -> str:
    """Return the text of a page, with that of pages it includes whole or in part."""
    text = page.read_text()
    included = (page.parent / path for path in INCLUDE.findall(text))
    return "\n".join([text, *(other.read_text() for other in included)])


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub and the site give to the headings of a page."""
    headings = HEADING.findall(CODE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_readme_has_the_test_command_of_ci():
    (command,) = re.findall(r'^TEST="(.+)"$', (ROOT / ".ci" / "run").read_text(), re.M)
    assert command in (ROOT / "README.md").read_text().splitlines(), (
        f"README.md and .ci/run must have the same line: {command}"
    )


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    missing = [p for p in mentions(text) if not (ROOT / p).exists()]
    assert not missing, f"{page} names {sorted(missing)}: correct it, or add them"


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    file = ROOT / page
    broken = []
    for link in links(file.read_text()):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        known = anchors(text_of(target)) if anchor and target.exists() else {anchor}
        if not target.exists() or anchor not in known:
            broken.append(link)
    assert not broken, f"{page} links to {sorted(broken)}: correct it, or add them"


def test_the_search_for_paths_and_links():
    text = """
[one](docs/one.md#part) [two](https://a.example/tests/two.py) ![three](docs/3.png)
`configs/four.py:smoke`, `configs/*.py`, `tests/test_<name>.py`, https://a.example/simmim_jax/tree
    python -m simmim_jax.main --config=configs/five.py --workdir=runs/five
    python -m simmim_jax.convert runs/five five.pth
<img alt="six" src="docs/six.png">, simmim_jax/data/, [seven](#eight).
"""
    assert mentions(text) == {
        "docs/one.md",
        "docs/3.png",
        "configs/four.py",
        "simmim_jax/main.py",
        "simmim_jax/convert.py",
        "configs/five.py",
        "docs/six.png",
        "simmim_jax/data",
    }
    assert links(text) == {"docs/one.md#part", "docs/3.png", "docs/six.png", "#eight"}


def test_anchors_of_headings():
    text = "# Wait, what?\n\n```sh\n# no heading\n```\n\n## `a.b` and 2 *more*\n"
    assert anchors(text) == {"wait-what", "ab-and-2-more"}
