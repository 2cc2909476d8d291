"""Numbers in, numbers out: estimates, tests, change points."""
