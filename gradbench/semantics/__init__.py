"""What the modes do, found out by running them: truth table, claims, pitfalls."""

from .claims import CLAIMS as CLAIMS
from .examination import examine as examine, held_against_record as held_against_record
from .pitfalls import PITFALLS as PITFALLS
from .record import differences as differences
from .table import truth_table as truth_table
