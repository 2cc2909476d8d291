"""Runs in, one self-contained HTML file out; it renders without torch."""

from .figures import FIGURES as FIGURES
from .page import render as render, write as write
