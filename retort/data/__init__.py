"""Data: rows read and recognised, prompts and answers made of them, texts filtered and encoded."""
