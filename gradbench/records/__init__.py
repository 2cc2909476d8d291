"""What a run consists of: plain data, written and read as JSON."""
