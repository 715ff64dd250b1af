"""Fuzzes the parsers one after the other, guided by the branches that an input takes.

    python tests/fuzz/drive.py SECONDS FOUND [--keep]

SECONDS are those of each parser. It starts with good files and with `corpus/NAME.txt`, an input a
line in base64; what takes new branches goes into the folder FOUND, and with --keep the smallest of
it into the corpus. Exit 1 where a parser crashed: its input lies in FOUND.
"""

import base64
import os
import sys
from pathlib import Path

import atheris

LARGEST, MOST, KEPT = 1024, 24, 600  # bytes of an input; inputs that are kept, and their bytes
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))
os.environ.setdefault("XDG_CONFIG_HOME", "/nonexistent")

with atheris.instrument_imports(include=["kdcompile"]):
    from fuzzing import CORPUS, corpus, outcome
    from parsers import PARSERS, Parser


def fuzz(parser: Parser, options: list[str]) -> int:
    """Exit code of a child that has its own fuzzer; the parent is left as it is."""
    child = os.fork()
    if child == 0:
        atheris.Setup([sys.argv[0], *options], lambda content: outcome(parser, content) and None)
        atheris.Fuzz()  # ends the process
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def keep(parser: Parser, found: Path) -> None:
    """Put the smallest inputs of a folder into the parser's corpus."""
    known = {*corpus(parser.name), *(path.read_bytes() for path in found.iterdir())}
    small = sorted(
        (c for c in known if len(c) <= KEPT), key=lambda content: (len(content), content)
    )
    lines = (base64.b64encode(content).decode() + "\n" for content in small[:MOST])
    (CORPUS / f"{parser.name}.txt").write_text("".join(lines))


def main(seconds: int, found: Path, keeps: bool) -> int:
    """Fuzz every parser; 1 where one crashed."""
    crashed = []
    for parser in PARSERS:
        own = found / parser.name
        own.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate((*parser.good(), *corpus(parser.name))):
            (own / f"start-{number}").write_bytes(content)
        options = [
            f"-max_len={max(LARGEST, *(len(content) for content in parser.good()))}",
            f"-max_total_time={seconds}", f"-artifact_prefix={found}/{parser.name}-",
            "-timeout=20", "-rss_limit_mb=8192", "-verbosity=0", "-print_final_stats=1",
            "-close_fd_mask=1",
        ]  # fmt: skip
        sys.stderr.write(f"parser {parser.name}\n")
        sys.stderr.flush()
        if fuzz(parser, [*options, str(own)]):
            crashed.append(parser.name)
        elif keeps:
            keep(parser, own)
    sys.stdout.write(f"crashed: {', '.join(crashed) or 'none'}\n")
    return int(bool(crashed))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), "--keep" in sys.argv))
