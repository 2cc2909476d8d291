"""What gradbench adds to pytest: benchmarks of cells, and limits on memory in anyone's tests."""
