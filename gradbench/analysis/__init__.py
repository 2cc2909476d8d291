"""One run, looked at: frames, findings, sentences, units."""
