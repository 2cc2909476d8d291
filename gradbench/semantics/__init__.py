"""What the modes do, found out by running them: truth table, claims, pitfalls."""

from .claims import CLAIMS as CLAIMS
from .examination import examine as examine
from .pitfalls import PITFALLS as PITFALLS
from .record import differences as differences
from .table import truth_table as truth_table
