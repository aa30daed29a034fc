"""Tests of whole jobs, run by the command."""
