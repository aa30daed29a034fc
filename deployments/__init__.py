"""How Retort runs on a Prefect server: deployments, and what the server needs for them."""
