"""A tracker that keeps the calls that it got, or fails in one of its methods."""


class PlainTracker:
    """`calls` are the names of the methods with what they were given."""

    def __init__(self, fails=""):
        self.calls, self._fails = [], fails

    def _note(self, method, *given):
        if method == self._fails:
            raise ConnectionError(f"{method} is down\nand has been for hours")
        self.calls.append((method, *given))

    def start(self, name, settings):
        self._note("start", name, dict(settings))

    def metrics(self, values, step):
        self._note("metrics", step, dict(values))

    def artifact(self, path):
        self._note("artifact", path.name)

    def finish(self, succeeded, facts):
        self._note("finish", succeeded, dict(facts))
