"""Helpers that several tests share: servers, samples, assertions. Contains no tests."""
