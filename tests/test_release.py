"""What a release says of itself: metadata, changelog, citation; and that git's files reach the package."""

import datetime
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import globalcom2

ROOT = Path(__file__).parent.parent
DATED = re.compile(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", re.M)


@pytest.fixture(scope="module")
def pyproject():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def project(pyproject):
    return pyproject["project"]


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.fixture(scope="module")
def changelog():
    return (ROOT / "CHANGELOG.md").read_text()


def test_an_index_is_told_who_and_under_which_terms(project):
    assert project["authors"] == [{"name": "globalcom2 contributors"}]
    assert project["license"] == "Apache-2.0"
    assert all((ROOT / file).is_file() for file in project["license-files"])
    assert project["dynamic"] == ["readme", "version"]
    assert all(address.startswith("https://") for address in project["urls"].values())
    assert not [text for text in project["classifiers"] if text.startswith("License")], "license= says it (PEP 639)"


def test_the_newest_entry_of_the_changelog_is_this_version(changelog, citation):
    version, date = DATED.search(changelog).groups()
    assert version == globalcom2.__version__
    assert changelog.index("## Unreleased") < changelog.index(f"## {version}")
    assert str(citation["date-released"]) == date
    datetime.date.fromisoformat(date)


def test_the_citation_is_of_this_version_and_of_the_paper(citation, project):
    assert citation["version"] == globalcom2.__version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    paper = citation["preferred-citation"]
    assert paper["authors"][0] == {"family-names": "Liu", "given-names": "Xuyang"}
    assert paper["url"] == project["urls"]["Paper"]
    assert project["urls"]["Published paper"].endswith(paper["doi"])
    assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])


def test_the_readme_of_an_index_links_to_no_file_of_the_repository(pyproject):
    """`make dist` looks at what is really built."""
    text = (ROOT / "README.md").read_text()
    for rule in pyproject["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert "arxiv.org" in text
    assert "Documentation" in text
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_forms_for_issues(form):
    """As the hosting site wants them: a name, a description, fields with unique ids and labels."""
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
        if field["type"] in ("dropdown", "checkboxes"):
            assert all(option is not None for option in field["attributes"]["options"])
            assert not any(isinstance(option, bool) for option in field["attributes"]["options"]), (
                "write 'Yes' in quotes"
            )
    missing = [page for page in pages_named(form.read_text()) if not (ROOT / page).is_file()]
    assert not missing


@pytest.mark.parametrize("text", ["SECURITY.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md"])
def test_pages_for_contributors_name_files_and_targets_that_exist(text):
    content = (ROOT / text).read_text()
    missing = [page for page in pages_named(content) if not (ROOT / page).is_file()]
    assert not missing
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)`", content)) <= targets


def pages_named(text: str) -> set[str]:
    return set(re.findall(r"\b(?:docs/)?[\w-]+\.md\b", text))


def test_no_file_of_the_package_is_ignored():
    """Builds leave out what .gitignore names, even where git tracks it. `make dist` compares the whole contents."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files belong to the package")
    ours = git("ls-files", "-z", "src").split("\0")
    assert "src/globalcom2/mini/model/model.safetensors" in ours
    ignored = git("ls-files", "-z", "--cached", "--ignored", "--exclude-standard").split("\0")
    assert ignored == [""]


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def test_data_of_the_package_are_where_the_code_reads_them():
    package = Path(globalcom2.__file__).parent
    source = {
        file.relative_to(ROOT / "src/globalcom2") for file in (ROOT / "src/globalcom2").rglob("*") if is_data(file)
    }
    assert Path("py.typed") in source
    assert Path("mini/model/config.json") in source
    assert not {file for file in source if not (package / file).is_file()}


def is_data(file: Path) -> bool:
    return file.is_file() and file.suffix not in (".py", ".pyc")
