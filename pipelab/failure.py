"""How is a failed run told? One sentence that names the culprit, and a report of what every rank was doing."""


class RunError(RuntimeError):
    """A run that failed: the sentence names the rank, what it was doing, and the cause.

    `.sentence` is that sentence, `.report` what follows it (the other ranks, the last actions, the last lines printed),
    `.traceback` the culprit's own traceback, or "".
    """

    def __init__(self, sentence: str, report: str = "", traceback: str = "") -> None:
        super().__init__("\n".join(filter(None, (sentence, report))))
        self.sentence = sentence
        self.report = report
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: the rank's traceback instead of the launcher's."""
        return [*self.traceback.splitlines(), f"{type(self).__name__}: {self}"]
