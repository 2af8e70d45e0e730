"""Recipes that come with ds2deploy; `ds2deploy train NAME` finds them here."""
