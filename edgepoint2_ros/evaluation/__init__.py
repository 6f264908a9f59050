"""Evaluation: how well features of different methods can be matched, on homographies and on relative poses."""
