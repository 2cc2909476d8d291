"""What the modes do, found out by running them."""

from .table import truth_table as truth_table
