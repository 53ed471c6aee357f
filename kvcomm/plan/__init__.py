"""Estimating what a graph would take on other hardware: a trace, a description, a simulation.

Nothing here computes with a model, and nothing imports torch.
"""
