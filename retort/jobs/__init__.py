"""What a command does, one file or folder each, without a terminal: `flows/commands/` and the
client call it."""
