"""Where the benchmarks write: one file, one section a script."""

from pathlib import Path

RESULTS = Path(__file__).parent.parent / "RESULTS.md"


def write_section(title: str, text: str, path: Path = RESULTS) -> None:
    """Put the text under a heading of its own in the results, in place of what stood there."""
    before = path.read_text() if path.exists() else "# Benchmark results\n\nWritten by the scripts beside this file.\n"
    sections = before.split("\n## ")
    kept = [section.rstrip() for section in sections if not section.startswith(f"{title}\n")]
    path.write_text("\n\n## ".join([*kept, f"{title}\n\n{text}"]) + "\n")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
