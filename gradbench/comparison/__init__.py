"""Two versions of a model's code side by side: checked out, stepped in turns, judged."""
