"""Checks the links of every page in the repository; reads files only, and takes less than a second.

- A relative link leads to a file that exists, and its anchor to a heading of that page.
- A page that a source, a comment or a message names exists.
- `docs/SUMMARY.md`, the contents of the site, has every page of `docs/` once.

`links.py FOLDER` checks a built site instead: every relative link leads to a file, and its anchor to an element.
"""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import unicodedata
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENTS = ROOT / "docs/SUMMARY.md"
FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
NAMED_PAGE = re.compile(r"(?<![\w/.-])docs/[\w/.-]+\.md")


def tracked():
    """Every file of the repository, new ones included, and what is left of it."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        names = [path for path in ROOT.rglob("*") if "target" not in path.parts and ".git" not in path.parts]
    return [path for path in names if path.is_file()]


def prose(text):
    """The text without code blocks and code spans, where brackets are no links."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", FENCE.sub("", text))


def slug(heading):
    """The anchor that a heading gets on GitHub and in the site: both keep letters, digits, `-` and `_`."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").strip().lower()
    kept = "".join(c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
    return kept.replace(" ", "-")


def anchors(text):
    seen, all_of_them = {}, set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE):
        name = slug(heading)
        count = seen.get(name, 0)
        seen[name] = count + 1
        all_of_them.add(f"{name}-{count}" if count else name)
    return all_of_them


def faults_of_pages():
    files = tracked()
    pages = {path: path.read_text() for path in files if path.suffix == ".md"}
    for page, text in pages.items():
        for link in LINK.findall(prose(text)):
            where = f"{page.relative_to(ROOT)}: {link}"
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = urllib.parse.unquote(link).partition("#")
            to = pathlib.Path(os.path.normpath(page.parent / target)) if target else page
            if not to.exists():
                yield f"{where}: there is no such file"
            elif anchor and to.suffix == ".md" and anchor not in anchors(pages.get(to) or to.read_text()):
                yield f"{where}: the page has no such heading"
    for file in files:
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for name in set(NAMED_PAGE.findall(text)):
            if not (ROOT / name).exists():
                yield f"{file.relative_to(ROOT)} names {name}, which does not exist"
    listed = [pathlib.Path(os.path.normpath(CONTENTS.parent / link)) for link in LINK.findall(CONTENTS.read_text())]
    for page in sorted(pages):
        if (ROOT / "docs") in page.parents and page != CONTENTS and listed.count(page) != 1:
            yield f"docs/SUMMARY.md has {page.relative_to(ROOT)} {listed.count(page)} times, not once"


class Page(html.parser.HTMLParser):
    """The links and the ids of a page of the site."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def faults_of_site(folder):
    pages = {path: Page(path.read_text()) for path in folder.rglob("*.html")}
    # `print.html` repeats all pages, and a page that is not found has no folder of its own.
    for path, page in pages.items():
        if path.name in ("print.html", "404.html", "toc.html"):
            continue
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            target, _, anchor = urllib.parse.unquote(link).partition("#")
            to = pathlib.Path(os.path.normpath(path.parent / target.split("?")[0])) if target else path
            where = f"{path.relative_to(folder)}: {link}"
            if not to.exists():
                yield f"{where}: there is no such file"
            elif anchor and to in pages and anchor not in pages[to].ids:
                yield f"{where}: the page has no such element"


def main():
    faults = list(faults_of_site(pathlib.Path(sys.argv[1])) if len(sys.argv) > 1 else faults_of_pages())
    print("\n".join(faults) or "all links lead somewhere")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
