"""How can a step be explored? With the pointer, with keys, with sliders, and while it happens."""
