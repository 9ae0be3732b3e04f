"""Scores of a model against data with truth, through the way that requests take."""
