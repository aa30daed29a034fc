"""Tests of one stage, mostly in this process, with tiny models and real engines."""
