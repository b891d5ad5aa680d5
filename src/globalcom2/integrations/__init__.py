"""Bridges to other people's programs. Each imports its program only inside its own folder."""
