"""Make five_pipelines.png, the picture in the README, from a real run: python labs/images/five_pipelines.py

It trains lab 01's model with the five schedules and photographs pipelab's own figure with a browser. So it needs
Chromium, and Pillow to make the file small; the project itself needs neither.
"""

import subprocess
import tempfile
from pathlib import Path

import pipelab as pl

NAMES = ["naive", "gpipe", "1f1b", "interleaved", "zb-h1"]
RANKS, MICROBATCHES, CHUNKS, WIDTH = 4, 8, 2, 1200
TITLE = f"One model, five schedules: {RANKS} ranks, {MICROBATCHES} micro-batches, measured in virtual time on a CPU"
BROWSER = "chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --virtual-time-budget=15000"


def measured_steps():
    """One real step of each schedule."""
    from pipelab.data import Batches, load_text
    from pipelab.models import build_model

    sizes = {"microbatches": MICROBATCHES, "rows": 2, "context": 64}
    batches = Batches(text=load_text("stdlib-docs"), **sizes, seed=0, steps=5)
    for name in NAMES:
        schedule = pl.build(name, RANKS, MICROBATCHES, chunks=CHUNKS if name == "interleaved" else 1)
        yield pl.train(build_model("small", layers=2 * RANKS * CHUNKS), batches, schedule).trace


def photograph(figure, picture):
    """The figure as a browser shows it, in 48 colours."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.write_html(page, config={"displayModeBar": False})
        size = f"--window-size={WIDTH + 16},{figure.layout.height + 16}"
        options = ["--force-device-scale-factor=1.5", size, f"--user-data-dir={folder}/profile"]
        command = [*BROWSER.split(), *options, f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    Image.open(picture).convert("RGB").quantize(48).save(picture, optimize=True)


if __name__ == "__main__":
    figure = pl.compare(list(measured_steps()))
    figure.update_layout(width=WIDTH, title_text=TITLE)
    figure.update_traces(showlegend=False, selector={"name": "messages (click)"})  # nothing to click in a picture
    photograph(figure, Path(__file__).with_suffix(".png"))
