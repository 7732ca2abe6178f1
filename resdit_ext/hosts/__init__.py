"""Hosts: where a model call is intercepted. None of these modules imports its host."""
