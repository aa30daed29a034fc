"""Tests without a process of their own and without a server: a module each."""
