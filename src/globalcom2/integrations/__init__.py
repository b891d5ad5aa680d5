"""Bridges to other people's programs, one folder or file each.

A bridge imports its program only inside its own folder, and only when that program asks for it.
"""
