"""Rounds of generate, judge, pair, train and evaluate, each of which can be stopped anywhere."""
