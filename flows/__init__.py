"""What runs in which order: the distillation flow and the `retort` command."""
