"""What memory is for, what it will be, and what keeps it: accounts beyond a single figure."""
