"""Is the measuring right? Equal work must come out equal, injected work must be found."""
