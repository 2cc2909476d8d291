"""Runs in, the files of other tools out; and verdicts in the forms that CI systems show."""

from .formats import FORMATS as FORMATS, Format as Format, export as export, write as write
from .numbers import Exported as Exported
from .verdict_file import Verdicts as Verdicts, read_verdicts as read_verdicts
