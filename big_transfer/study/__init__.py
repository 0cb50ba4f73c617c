"""Rows in; laws, figures and a report out. Needs no accelerator and imports no training code."""
