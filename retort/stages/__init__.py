"""The stages of a job, a folder each in the job's order, and beside them what they share."""
