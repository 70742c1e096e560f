"""A build context: what goes in, what stays out, and when two are the same."""

import os
import tarfile
from pathlib import Path

import pytest

from headrace.errors import ImageError
from headrace.sandbox.docker_context import Ignore, digest_of, pack, sources


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names(root: Path) -> list[str]:
    with pack(str(root), str(root / "Dockerfile")) as packed:
        return tarfile.open(fileobj=packed.tar).getnames()


def digest(root: Path) -> str:
    return digest_of(root, Ignore.read(root / ".dockerignore"), ["."]).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    write(root / "Dockerfile", "FROM scratch\n")
    write(root / "src/main.py", "print()\n")
    write(root / ".hidden/.env", "A=1\n")
    return root


def test_dotfiles_and_folders_are_kept(root: Path) -> None:
    assert sorted(names(root)) == [".hidden", ".hidden/.env", "Dockerfile", "src", "src/main.py"]


def test_symlinks_go_in_as_they_are(root: Path) -> None:
    (root / "out").symlink_to("/etc")
    (root / "broken").symlink_to("nowhere")
    with pack(str(root), str(root / "Dockerfile")) as packed:
        tar = tarfile.open(fileobj=packed.tar)
        assert [tar.getmember(n).linkname for n in ("out", "broken")] == ["/etc", "nowhere"]
        assert not [n for n in tar.getnames() if n.startswith("out/")]


def test_the_same_files_have_the_same_digest_whenever_they_were_written(root: Path) -> None:
    first = digest(root)
    os.utime(root / "src/main.py", (1, 1))
    assert digest(root) == first


def test_a_changed_mode_name_or_content_changes_the_digest(root: Path) -> None:
    seen = {digest(root)}
    (root / "src/main.py").chmod(0o755)
    seen.add(digest(root))
    (root / "src/main.py").rename(root / "src/other.py")
    seen.add(digest(root))
    write(root / "src/other.py", "print(1)\n")
    seen.add(digest(root))
    assert len(seen) == 4


def test_ignored_files_stay_out_and_do_not_count(root: Path) -> None:
    write(root / ".dockerignore", "# a comment\n\n*.log\n**/cache\n/src/secret\n")
    before = digest(root)
    for name in ("a.log", "cache/x", "src/cache/y", "src/secret/z"):
        write(root / name, "x")
    assert digest(root) == before


def test_an_exception_brings_a_file_back_from_an_ignored_folder(root: Path) -> None:
    write(root / ".dockerignore", "src\n!src/main.py\n")
    write(root / "src/other.py", "")
    assert "src/main.py" in names(root)
    assert "src/other.py" not in names(root)


def test_the_dockerfile_is_sent_even_when_everything_is_ignored(root: Path) -> None:
    write(root / ".dockerignore", "*\n")
    assert sorted(names(root)) == [".dockerignore", "Dockerfile"]


def test_a_dockerfile_outside_the_context_is_added(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/Dockerfile", "FROM scratch\nCOPY . /\n")
    with pack(str(root), str(tmp_path / "elsewhere/Dockerfile")) as packed:
        member = tarfile.open(fileobj=packed.tar).extractfile(packed.dockerfile)
        assert member is not None and member.read() == b"FROM scratch\nCOPY . /\n"


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        ("*.md", "README.md", True),
        ("*.md", "docs/README.md", False),
        ("**/*.md", "docs/deep/README.md", True),
        ("**/*.md", "README.md", True),
        ("docs", "docs/a/b", True),
        ("docs/", "docs/a/b", True),
        ("./docs", "docs/a", True),
        ("docs/**", "docs/a/b", True),
        ("doc?", "docs", True),
        ("file[0-9]", "file7", True),
        ("file[^0-9]", "file7", False),
        (r"\*.md", "a.md", False),
        ("a.b", "aXb", False),
        ("temp/*", "temp/x/y", True),
    ],
)
def test_ignore_patterns_mean_what_docker_says(pattern: str, path: str, excluded: bool) -> None:
    assert Ignore([pattern]).excludes(path) is excluded


def test_the_last_rule_that_matches_decides() -> None:
    rules = Ignore(["*.md", "!README*.md", "README-secret.md"])
    assert [rules.excludes(n) for n in ("a.md", "README.md", "README-secret.md")] == [
        True,
        False,
        True,
    ]


def test_a_source_may_be_a_file_a_folder_a_pattern_or_everything(root: Path) -> None:
    nothing = Ignore([])
    assert sources(root, nothing, "src/") == ["src"]
    assert sources(root, nothing, "./src/main.py") == ["src/main.py"]
    assert sources(root, nothing, "/src/*.py") == ["src/main.py"]
    assert sources(root, nothing, ".") == ["."]
    assert sources(root, nothing, "nowhere") == []
    assert sources(root, nothing, "../../etc/passwd") == []


def test_a_source_that_is_ignored_is_not_there(root: Path) -> None:
    assert sources(root, Ignore(["src"]), "src/main.py") == []
    assert sources(root, Ignore(["src", "!src/main.py"]), "src/main.py") == ["src/main.py"]
    assert sources(root, Ignore(["src", "!src/main.py"]), "src") == ["src"]


def test_a_missing_dockerfile_or_context_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected a Dockerfile at .*/nowhere"):
        pack(str(tmp_path), str(tmp_path / "nowhere"))
    write(tmp_path / "Dockerfile", "")
    with pytest.raises(ImageError, match="expected a folder as build context, found none at .*/no"):
        pack(str(tmp_path / "no"), str(tmp_path / "Dockerfile"))
