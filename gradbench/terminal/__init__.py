"""The console: tables of runs, predictions, verdicts and series."""
