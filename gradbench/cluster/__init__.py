"""Blocks of one run on several machines: who runs which, and what follows where one is lost."""
