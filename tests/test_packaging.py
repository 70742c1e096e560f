"""The folders, the links and what is shipped agree."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "headrace"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = PYPROJECT["tool"]["hatch"]["build"]["targets"]


def test_every_linked_folder_is_shipped() -> None:
    links = {p.name for p in PACKAGE.iterdir() if p.is_symlink()}
    mapped = {k for k in TARGETS["wheel"]["sources"] if not k.startswith("src/")}
    assert links == mapped
    assert links <= set(TARGETS["wheel"]["only-include"])
    assert links <= set(TARGETS["sdist"]["only-include"])


def test_every_root_file_is_shipped() -> None:
    own = {
        f"src/headrace/{p.name}"
        for p in PACKAGE.iterdir()
        if not p.is_symlink() and p.name != "__pycache__"
    }
    assert own <= set(TARGETS["wheel"]["only-include"])
    assert own <= set(TARGETS["sdist"]["only-include"])


def test_every_link_leads_to_a_real_folder_of_the_checkout() -> None:
    for link in (p for p in PACKAGE.iterdir() if p.is_symlink()):
        assert link.resolve() == ROOT / link.name
        assert link.resolve().is_dir()


def test_importing_the_package_pulls_in_no_optional_or_heavy_dependency() -> None:
    code = (
        "import sys, headrace, headrace.types, headrace.cli, headrace.configs.models\n"
        "heavy = {'torch', 'vllm', 'transformers', 'aiodocker', 'renderers', 'aiohttp'}\n"
        "heavy.add('httptools')\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_dependency_has_a_line_in_the_dependency_page() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    project = PYPROJECT["project"]
    named = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        named += extra
    for requirement in named:
        if requirement.startswith("headrace["):
            continue  # an extra among the others
        name = requirement.split(">")[0].split("=")[0].split("<")[0].strip()
        assert f"`{name}`" in page, f"{name} is not explained in docs/dependencies.md"
