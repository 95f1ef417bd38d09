"""What several benchmarks need: the results file, the targets, and each library behind one interface."""
