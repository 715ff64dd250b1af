"""A report whose names are all one hostile text, and what a browser would run of a page."""

from html.parser import HTMLParser

from kdcompile.core.report import GateResult, Measurement, Report, overall

# an SVG in an `img` runs no script and fetches nothing (HTML, "secure static mode" of SVG 2)
IMAGES = tuple(f"data:image/{kind};base64," for kind in ("png", "webp", "svg+xml"))


class Active(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self):
        super().__init__()
        self.found, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "svg"):
            self.found.append(tag)
        for key, value in attributes:
            if key.startswith("on") or key in ("href", "action", "style", "srcdoc"):
                self.found.append(f"{tag} {key}")
            if key in ("src", "srcset") and not value.startswith(IMAGES):
                self.found.append(f"{tag} {key}={value[:30]}")

    def handle_data(self, data):
        self.texts.append(data)


def _everywhere(value, name):
    """The same values with the name in the place of each text and each key that is free."""
    if isinstance(value, dict):
        return {key: _everywhere(below, name) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_everywhere(below, name) for below in value)
    return name if isinstance(value, str) else value


def hostile(name: str) -> Report:
    """A report all of whose names are this: of the folder, target, gates, images, classes."""
    number = Measurement(
        name, 1.0, name, "host", machine=name, backend=name, backend_version=name,
        precision=name, mode=name,
    )  # fmt: skip
    texts = (name,) * 3
    gates = [GateResult(name, v, "host", True, *texts, (number,)) for v in ("passed", "pending")]
    details = _everywhere({
        "teacher": {"x": "x", "val_top1": 0.9}, "distill": {"recipe": "x", "warnings": ["x"]},
        "choice": {"precision": "x", "candidates": [
            {"precision": "x", "evidence": "x", "why": "x", "passed": True, "latency_ms": 1.0}]},
        "calibration": {"calibrator": "x", "worst": [{"tensor": "x"}], "warnings": ["x"]},
        "examples": [{"name": "x", "true": "x", "predicted": "x", "teacher": "x"}],
        "dropped": [{"name": "x", "split": "x", "twin": "x"}], "max_test": 3, "parity": {"x": "x"},
        "worst": [{"name": "x", "true": "x", "student": "x", "teacher": "x", "difficulty": 0.5,
                   "grew": 1.0}],
        "by_class": [{"class": "x", "n": 2, "teacher_top1": 0.5, "student_top1": 0.5}],
        "predictions": [{"name": "x", "true": 0, "teacher": 0, "student": 1}],
        "layers": [{"name": "x", "ms": 1.0, "share": 0.5, "precision": "x"}],
    }, name)  # fmt: skip
    details["examples"][0]["kind"] = "best"
    details["task"] = {
        "kind": "classification", "metric": "top1", "is_rate": True, "classes": [name, "b"],
    }  # fmt: skip
    verdict, code = overall(gates)
    environment = {"python": name, name: name}
    return Report(name, name, verdict, code, tuple(gates), (number,), environment, details)
