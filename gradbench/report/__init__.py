"""Runs in, one self-contained HTML file out; it renders without torch."""

from ..analysis.headline import answer as answer
from .figures import FIGURES as FIGURES, save_figures as save_figures
from .notebook import Report as Report
from .page import render as render, write as write
