"""Two runs, judged: the verdict on every figure, and the exit status."""
