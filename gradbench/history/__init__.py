"""Many runs: series over commits, their changes, and where they are kept."""
