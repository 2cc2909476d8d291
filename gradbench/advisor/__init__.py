"""Advice on one model: which grad mode to use here, what it saves, what to look out for."""

from .advised import Advised as Advised, advise as advise
from .explaining import explain as explain
from .study import Question as Question, study as study
