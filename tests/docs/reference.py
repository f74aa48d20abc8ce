"""Holds the reference pages against what they describe, or writes their tables anew: `reference.py BINARY [--write]`.

Whatever stands between `<!-- from NAME -->` and `<!-- end -->` is made from the sources or the binary. Pages that are written by hand are
compared with them. Run by `make test`; `make reference` writes.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = {path: path.read_text() for path in sorted((ROOT / "src").rglob("*.rs"))}
KINDS = {"IntCounter": "counter", "IntCounterVec": "counter", "IntGauge": "gauge", "IntGaugeVec": "gauge",
         "Histogram": "histogram", "HistogramVec": "histogram"}


def read(name):
    return (ROOT / name).read_text()


def sections_of_config():
    """conf/keygate.toml, which the tests hold against the code: a heading and a block for each section."""
    head, *sections = re.split(r"(?m)^(?=\[)", read("conf/keygate.toml"))
    yield "\n".join(line.removeprefix("#").strip() for line in head.strip().splitlines()[2:]) + "\n"
    for section in sections:
        heading = re.match(r"\[+[^]]+\]+", section).group()
        yield f"## `{heading}`\n\n```toml\n{section.strip()}\n```\n"


def metrics():
    """Every metric of src/metrics.rs with its type, labels and help."""
    declared = re.search(r"^metrics! \{\n(.*?)^\}", read("src/metrics.rs"), re.MULTILINE | re.DOTALL).group(1)
    item = re.compile(r"((?:\s*///[^\n]*\n)+)\s*\w+: (\w+) = \"([^\"]+)\"(?:, labels &\[([^]]*)\])?")
    for help_text, kind, name, labels in item.findall(declared):
        text = " ".join(line.strip().removeprefix("///").strip() for line in help_text.strip().splitlines())
        yield name, KINDS[kind], [label.strip(' "') for label in labels.split(",") if label.strip()], text


def table_of_metrics():
    yield "| metric | type | labels | meaning |\n|---|---|---|---|"
    for name, kind, labels, text in metrics():
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text.replace('|', chr(92) + '|')} |"


def helps(binary, words=()):
    """The help of a command and of all commands below it."""
    told = subprocess.run([binary, *words, "--help"], capture_output=True, text=True, env={"COLUMNS": "100"}, check=True)
    text = "\n".join(line.rstrip() for line in told.stdout.strip().splitlines())
    yield words, text
    commands = re.search(r"^Commands:\n((?: +.*\n?)+)", text, re.MULTILINE)
    for name in re.findall(r"^  (\w[\w-]*)", commands.group(1), re.MULTILINE) if commands else ():
        if name != "help":
            yield from helps(binary, (*words, name))


def commands(binary):
    for words, text in helps(binary):
        yield f"## {' '.join(('keygate', *words))}\n\n```text\n{text}\n```\n"


def filled(page, name, lines):
    text = read(page)
    start, end = f"<!-- from {name} -->\n", "<!-- end -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    assert found, f"{page} has no place for {name}"
    return before + start + "\n".join(lines).strip() + "\n" + end + after


def generated(binary):
    return {
        "docs/reference/config.md": ("conf/keygate.toml", sections_of_config()),
        "docs/reference/metrics.md": ("src/metrics.rs", table_of_metrics()),
        "docs/reference/cli.md": ("keygate --help", commands(binary)),
    }


def first_cells(page, heading):
    """The names in the first cells of the table under a heading."""
    section = read(page).split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def differs(what, told, known):
    if told - known:
        yield f"{what}: {', '.join(sorted(told - known))} is in the page and not in the code"
    if known - told:
        yield f"{what}: {', '.join(sorted(known - told))} is in the code and not in the page"


def access_log_fields():
    write = re.search(r'tracing::info!\(\s*target: "keygate::access",\n(.*?)\n +\);', read("src/proxy/observe/access.rs"), re.DOTALL)
    return set(re.findall(r"^\s+(\w+) = ", write.group(1), re.MULTILINE))


def own_headers():
    """The names of Keygate's own header fields, as literals of the sources outside of tests."""
    texts = [text.split("#[cfg(test)]")[0] for path, text in SOURCES.items() if "tests" not in path.parts]
    return {name for text in texts for name in re.findall(r'"(x-keygate-[a-z-]*[a-z])(?:-?)"', text)}


def faults(binary):
    for page, (name, lines) in generated(binary).items():
        if filled(page, name, lines) != read(page):
            yield f"{page} is not what {name} says: run `make reference`"
    yield from differs("docs/reference/logging.md, fields of the access log",
                       first_cells("docs/reference/logging.md", "Access log"), access_log_fields())
    told = {name.lower() for name in re.findall(r"`(X-Keygate-[\w-]+?)(?:-NAME)?[`:]", read("docs/reference/headers.md"))}
    yield from differs("docs/reference/headers.md", told, own_headers())
    # What a page shows as a log message or as an error is said by the code.
    code = " ".join("".join(SOURCES.values()).replace("\\\n", " ").split())
    for page in ["docs/reference/logging.md", "docs/how-to/troubleshooting.md"]:
        for message in re.findall(r"“([^”]+)”", read(page)):
            parts = [part.strip() for part in message.split("…") if part.strip()]
            if not all(part in code for part in parts):
                yield f"{page}: no source says “{message}”"


def main():
    binary = sys.argv[1]
    if "--write" in sys.argv:
        for page, (name, lines) in generated(binary).items():
            (ROOT / page).write_text(filled(page, name, lines))
        return
    found = list(faults(binary))
    print("\n".join(found) or "the reference pages say what the code does")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
