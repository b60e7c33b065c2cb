"""What MkDocs does not do by itself: pages from outside docs/, links to them, and lists as forges read them.

The pages of docs/ are read in the repository too. There they link to ``../SECURITY.md``, and so they do in the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Files of the repository → the pages of the site that stand for them.
PAGES = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
STANDS_FOR = {**PAGES, "README.md": "index.md", "docs/adr": "adr/index.md"}

_FENCE = re.compile(r"^(```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
_LIST_IN_PARAGRAPH = re.compile(r"^(?![ \t#>|]|[-*+] |\d+\. )(\S.*\n)(?=(?:[-*+]|1\.) )", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(_repository(config) / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links point into the site, and lists begin without an empty line before them; code stays as it is."""
    source = Path(page.file.abs_src_path or "").relative_to(_repository(config)).as_posix()
    folder = posixpath.dirname(source)
    here = posixpath.dirname(page.file.src_uri)

    def in_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        name = STANDS_FOR.get(target, target.removeprefix("docs/"))
        if name == target:
            return link[0]  # neither a page nor what stands for one: left to MkDocs, which names it
        return f"]({posixpath.relpath(name, here or '.')}{link[2] or ''})"

    parts = _FENCE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = _LIST_IN_PARAGRAPH.sub(r"\1\n", _LINK.sub(in_the_site, parts[index]))
    return "".join(parts)


def _repository(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).resolve().parent
