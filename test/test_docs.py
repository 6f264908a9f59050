"""Links between the pages of the repository lead somewhere. `make docs` checks those of docs/ once more, as a site."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def read(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r'^ *```.*?^ *```', '', page.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(r'^#+ (.*)', read(page), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', read(page)):
        if link.startswith('http'):
            continue
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        assert target.exists(), link
        # Anchors with a dot are names of the API reference, which only MkDocs makes.
        assert not anchor or '.' in anchor or anchor in anchors(target), link


def test_links_within_the_site_stay_within_docs():
    for page in (ROOT / 'docs').rglob('*.md'):
        for link in re.findall(r'\]\(((?!http)[^)#\s]+)', read(page)):
            assert (page.parent / link).resolve().is_relative_to(ROOT / 'docs'), f'{page.name}: {link}'


def test_the_map_in_contributing_has_every_part_of_the_package_and_no_other():
    table = re.search(r'\| `edgepoint2_ros/` \|.*?\n\n', read(ROOT / 'CONTRIBUTING.md'), re.DOTALL)[0]
    named = {name for row in table.strip().splitlines()[2:] for name in re.findall(r'`([^`]+)`', row.split('|')[1])}
    package = ROOT / 'edgepoint2_ros'
    files = {file.name for file in package.glob('*.py') if file.name != '__init__.py'}
    assert named == files | {f'{file.parent.name}/' for file in package.glob('*/__init__.py')}


def test_every_file_that_contributing_names_exists():
    package = ROOT / 'edgepoint2_ros'
    for name in re.findall(r'`([\w/]+\.(?:py|md|hpp|msg|yaml|toml|txt))`', read(ROOT / 'CONTRIBUTING.md')):
        assert any((folder / name).exists() for folder in (ROOT, package, ROOT / 'test')), name
