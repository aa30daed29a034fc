"""export: the student as files that run elsewhere, each measured as what it is."""
