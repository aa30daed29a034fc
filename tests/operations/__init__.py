"""Tests of servers, workers, the compose stack and Kubernetes."""
