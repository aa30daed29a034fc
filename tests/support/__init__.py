"""What tests share: tiny models, servers, rows, and how stages and jobs are run."""
