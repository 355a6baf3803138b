"""The structure of the code, held by reading its imports."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from natscope.core.methods import METHODS
from tests.conftest import syntax_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "core", "precompute", "assets")
# What each may import, as it is imported: below natscope. The folders are not importable by their own names.
MAY_IMPORT = {
    "core": {"core"},
    "precompute": {"precompute", "core", "assets"},
    "app": {"app", "precompute", "core", "assets"},
    "assets": {"assets", "precompute"},  # the script that made the embedded data reads it like any other
}
# Each of these is imported by one module alone, or in one package alone.
AT_HOME = {
    "datasets": "precompute/data/text_sources.py",
    "fsspec": "precompute/data/remote.py",
    "faiss": ("core/index/search.py", "core/index/file_checks.py"),
    "grpc": "core/index/milvus.py",
    "pymilvus": "core/index/milvus.py",
    "ray": "precompute/engines/on_ray.py",
    "openTSNE": "core/analysis/embedding.py",
    "trak": "core/methods/trak.py",
    "kronfluence": "core/methods/ekfac.py",
    "streamlit": "app/",
    "click": "app/cli/",
    "plotly": "app/figures/on_page.py",
    "matplotlib": "app/figures/style.py",
    "PIL": ("app/", "precompute/data/decode.py"),
    "torchvision": "precompute/data/datasets.py",
    "threadpoolctl": ("precompute/bundles/work.py", "precompute/engines/local.py"),
    "tokenizers": ("core/tokens.py", "precompute/data/tokenizing.py"),
    "filelock": (
        "core/locks.py",
        "core/scratch.py",
        "precompute/bundles/build.py",
        "precompute/bundles/background.py",
        "precompute/data/remote.py",
        "precompute/training/result_cache.py",
        "precompute/training/trusted.py",
    ),
}


def modules():
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported(file):
    """Return the full names of what a file imports, among them those that may be functions of a module."""
    for node in ast.walk(syntax_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", list(modules()), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file):
    name = str(file.relative_to(ROOT))
    allowed = MAY_IMPORT[name.split("/")[0]]
    for module in imported(file):
        top, _, rest = module.partition(".")
        assert top not in PACKAGES, f"{name} must import natscope.{module}"
        assert top != "natscope" or rest.split(".")[0] in allowed, f"{name} must not import {module}"
        assert top != "pickle"
        if top in AT_HOME:
            assert name.startswith(AT_HOME[top]), f"{name} must not import {module}: it belongs in {AT_HOME[top]}"


def test_no_module_needs_itself_to_be_imported():
    known = {".".join(("natscope", *f.relative_to(ROOT).with_suffix("").parts)): f for f in modules()}
    known = {name.removesuffix(".__init__"): file for name, file in known.items()}
    needs = {name: set() for name in known}
    for name, file in known.items():
        for node in syntax_of(file).body:  # imports within functions run later
            if isinstance(node, ast.ImportFrom):
                found = (f"{node.module}.{alias.name}" for alias in node.names)
                needs[name] |= {full if full in known else str(node.module) for full in found} & known.keys()
    list(graphlib.TopologicalSorter({name: found - {name} for name, found in needs.items()}).static_order())


def test_every_library_that_is_imported_is_declared_and_no_other():
    names = {"faiss": "faiss-cpu", "grpc": "grpcio", "PIL": "pillow", "trak": "traker"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["milvus"], *extras["ray"], *extras["text"]]
    declared = {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in needed}
    tops = {module.split(".")[0] for file in modules() for module in imported(file)} - {"natscope"}
    assert {names.get(top, top) for top in tops - set(sys.stdlib_module_names)} == declared


def test_every_folder_of_code_is_a_package_of_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for file in modules()}
    assert set(settings["packages"]) == {"natscope", *("natscope." + ".".join(folder.parts) for folder in folders)}
    assert settings["package-dir"] == {"natscope": "natscope"} | {f"natscope.{name}": name for name in PACKAGES}


# "random" is a word as well: a random test image, a group of random ones.
A_WORD = {f"app/{name}.py" for name in ("links", "views/coreset_queries", "views/compare", "views/query")}


def texts(file):
    """Return the texts of a file that are no docstrings."""
    tree = syntax_of(file)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("file", list(modules()), ids=lambda f: str(f.relative_to(ROOT)))
def test_methods_alone_name_methods(file):
    """All others draw them from the registry, so that a new one needs no other file."""
    name = str(file.relative_to(ROOT))
    if name.startswith("core/methods/") or name == "app/paper.py":  # what the paper says of its methods
        return
    found = set(texts(file))
    words = {word for m in METHODS.values() if not m.at_random for word in (m.name, m.title)}
    named = re.compile(rf"(?<![\w/])(?:{'|'.join(map(re.escape, words))})(?![\w/])")
    assert {text for text in found if named.search(text)} == set()
    assert name in A_WORD or not found & {word for m in METHODS.values() if m.at_random for word in (m.name, m.title)}


def test_code_of_others_is_imported_in_one_place():
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in modules()}
    assert [name for name, text in texts.items() if "import_module" in text] == ["precompute/training/models.py"]


def test_each_chart_is_written_once():
    """A chart is a record; one renderer draws it on a page and one in a file, and sheets of images are no charts."""
    drawing = re.compile(r"\b(?:plotly_chart|go\.\w+|Figure|add_subplot|subplots|savefig|update_layout)(?=\()")
    found = {}
    for file in sorted((ROOT / "app").rglob("*.py")):
        called = set(drawing.findall(file.read_text(encoding="utf-8")))
        if called:
            found[file.name] = called
    assert set(found) == {"on_page.py", "in_files.py", "style.py", "sheets.py"}
    assert found["style.py"] == {"Figure", "savefig"}
    assert found["in_files.py"] == {"subplots"}
    assert found["sheets.py"] == {"add_subplot"}


def test_colours_of_pages_and_charts_stand_in_one_place():
    """Those of methods stand with the methods; the logo, stylesheets and drawn widgets have a few of their own."""
    hexes = re.compile(r"\"#[0-9a-fA-F]{6}\"")
    named = {f.name for f in (ROOT / "app").rglob("*.py") if hexes.search(f.read_text(encoding="utf-8"))}
    assert named == {"theme.py"}


def test_no_page_is_named_like_a_package():
    names = {file.stem for file in (ROOT / "app").glob("*.py")}  # Streamlit puts this folder on the path
    assert not names & {*PACKAGES, "streamlit", "torch", "numpy", "plotly"}


def test_files_stay_short_enough_to_read():
    for file in modules():
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= 420, f"{file} has {lines} lines"


def test_the_repository_names_no_machine_and_holds_no_large_file():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split("\n"):
        file = ROOT / name
        if not name or not file.is_file():
            continue
        assert file.stat().st_size < 12e6, f"{name} is too large"
        if file.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".cff", ""}:
            text = file.read_text(encoding="utf-8")
            found = re.search(r"/(?:home|root|Users|work|tmp)/\w+", text)
            assert not found or file == Path(__file__), f"{name} holds a path of a machine: {found}"
