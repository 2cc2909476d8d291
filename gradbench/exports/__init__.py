"""Runs in, the files of other tools out; and verdicts in the forms that CI systems show."""
