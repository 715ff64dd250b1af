"""The Python sample of a bundle, `infer.py`: one file, which is joined of a part for its task."""

from pathlib import Path

NAME = "infer.py"
TEMPLATES = Path(__file__).with_name("templates")
PARTS = {  # by task: what reads its outputs, beside what every sample has
    "counting": "infer_maps.py", "segmentation": "infer_maps.py", "detection": "infer_boxes.py",
}  # fmt: skip
FROM_HERE = "\n# joined to infer.py from here on\n"
IMPORTS, END = "import argparse\n", 'if __name__ == "__main__":\n'


def text(task: str) -> str:
    """Its source for a task, as a manifest names it.

    The part's definitions lie before the last lines, which run the program.
    """
    whole = (TEMPLATES / NAME).read_text(encoding="utf-8")
    if task not in PARTS:
        return whole
    part = (TEMPLATES / PARTS[task]).read_text(encoding="utf-8")
    head, _, body = part.partition(FROM_HERE)
    lines = [line + "\n" for line in head.splitlines() if line.startswith("import ")]
    more = "".join(line for line in lines if line not in whole)
    start, _, end = whole.replace(IMPORTS, IMPORTS + more, 1).partition(END)
    return f"{start}{body.strip()}\n\n\n{END}{end}"
