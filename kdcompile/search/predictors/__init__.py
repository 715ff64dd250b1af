"""Predict a candidate's quality without training it in full."""
