"""One command per measured claim: `python -m benchmarks.<name>`."""
