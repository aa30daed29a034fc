"""The commands of `retort`, a thin file each: words are parsed here, a job does the work."""
