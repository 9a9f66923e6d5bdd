"""Worst-case evaluation of fusion rules: what is attacked, measured, chosen and summarised."""
