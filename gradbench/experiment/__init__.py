"""What to measure: the matrix of axes, its plan, presets and files."""
