"""Where is the script of the timeline? In six parts, each for one sitting, which make one ES module."""

from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("bars.js", "looks.js", "ground.js", "above.js", "page.js", "timeline.js")


def script() -> str:
    """The parts one behind the other: one module, which imports nothing.

    >>> "export default" in script()
    True
    """
    return "\n".join((HERE / part).read_text(encoding="utf-8") for part in PARTS)


def stylesheet() -> str:
    """The style of the page around the canvases.

    >>> "prefers-color-scheme" in stylesheet()  # the script finds out
    False
    """
    return (HERE / "timeline.css").read_text(encoding="utf-8")
