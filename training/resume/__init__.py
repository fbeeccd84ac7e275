"""Runs that can be interrupted at any moment and go on exactly."""
