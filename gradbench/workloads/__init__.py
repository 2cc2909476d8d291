"""What is run: grad modes, models, the steps of a workload."""
