"""Runs as one HTML page that needs nothing else (`python -m jopd.show`).

records.py    a run's folder    ->  plain data
document.py   data of runs      ->  the page, with its script, styles and data in it
live.py       a page that follows its runs, on a port of this machine
assets/       what the browser gets: a script for each tab, and uPlot, which draws curves
"""
